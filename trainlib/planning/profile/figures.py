"""What a profile shows, as plain figures: rows of operations by layer, op or source line, each with
its part of the predicted time, its traffic, and what it is bound by.

The time of a row is that of the core in the schedule, so that rows and waits add up to the
predicted time. Its bytes are all bytes through HBM, also those of copies that run beside the core.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from trainlib.chips import Chip
from trainlib.planning.ledger import Ledger, Operation
from trainlib.planning.ledger.names import UNNAMED
from trainlib.planning.ledger.schedule import COPIES, CORE, HOST

GROUPINGS = ("layer", "op", "source")
_NUMBERED = re.compile(r"\d+")
FAMILIES = {  # what a reader tells apart -> kinds of operations
    "products": ("product",),
    "kernels": ("kernel",),
    "elementwise": ("elementwise", "reduction", "convert", "random"),
    "copies": ("copy",),
    "gathers": ("gather", "scatter", "sort"),
    "collectives": ("collective",),
    "other": ("other",),
}
FAMILY_OF = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}
WAITING = "(waiting)"
# Below this share of both roofs, neither arithmetic nor traffic explains a time.
EXPLAINS = 0.25


@dataclasses.dataclass(frozen=True)
class Subject:
    """What was compiled, beside its ledger.

    Attributes:
      name: of a configuration or a function.
      target: name of the device or pod.
      flops: of the model on one device, in which MFU is counted: recomputation left out. None: all
        that is executed.
      examples: in a step, on all devices; 0 for a function.
      tokens: in a step; 0 where there are none.
    """

    name: str
    target: str
    flops: float | None = None
    examples: int = 0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """Operations that share a layer, an op or a source line, in one step on one device.

    Attributes:
      name: what they share.
      operations: how many.
      times: how often each of them runs, where that is the same for all that take time; else 0.
      seconds: of the core.
      share: of the predicted time.
      hbm_bytes: through HBM.
      flops: of arithmetic.
      of_peak: share of the chip's arithmetic in these seconds.
      of_bandwidth: share of the chip's bandwidth of HBM.
      lost: seconds beyond what its arithmetic and its bytes need at the least.
      bound: "compute", "memory", "link", or "neither" where no roof explains the seconds.
      family: the one of `FAMILIES` that takes most of the seconds.
    """

    name: str
    operations: int
    times: int
    seconds: float
    share: float
    hbm_bytes: int
    flops: float
    of_peak: float
    of_bandwidth: float
    lost: float
    bound: str
    family: str


def bound(of_peak: float, of_bandwidth: float, family: str = "") -> str:
    """What the time of a row is bound by; see `Row`."""
    if family in ("collectives", WAITING):
        return "link"
    if max(of_peak, of_bandwidth) < EXPLAINS:
        return "neither"
    return "compute" if of_peak >= of_bandwidth else "memory"


class Profile:
    """A ledger with a clock, and sums over it.

    Args:
      ledger: of a program for a chip that is known.
      subject: what was compiled.
    """

    def __init__(self, ledger: Ledger, subject: Subject):
        assert ledger.chip is not None, "a profile needs a chip"
        self.ledger, self.subject = ledger, subject
        self.chip: Chip = ledger.chip
        self.schedule = ledger.schedule

    @property
    def seconds(self) -> float:
        """The predicted time."""
        return self.schedule.seconds

    @cached_property
    def flops(self) -> float:
        """Of the model on one device, or all that is executed; see `Subject`."""
        return self.ledger.flops if self.subject.flops is None else self.subject.flops

    @cached_property
    def is_named(self) -> bool:
        """Whether a layer has a name; a plain function has none."""
        return any(one.layer not in ("", UNNAMED) for one in self.ledger.operations)

    @property
    def mfu(self) -> float:
        """Share of the chip's peak at the predicted time: of a model the one for bf16, of what is
        executed the one for its numbers.
        """
        if self.subject.flops is None:
            return self.schedule.bounds["arithmetic"] / self.seconds if self.seconds else 0.0
        return self.flops / self.chip.flops / self.seconds if self.seconds else 0.0

    @cached_property
    def core_seconds(self) -> Mapping[str, float]:
        """Operation -> seconds of the core in all its runs."""
        found: dict[str, float] = defaultdict(float)
        for span in self.schedule.spans:
            if span.lane == CORE:
                found[span.name] += span.end - span.start
        return found

    def seconds_of(self, operation: Operation) -> float:
        """Of the core, in all runs of an operation; 0 for what runs beside it."""
        return self.core_seconds.get(operation.name, 0.0)

    @cached_property
    def waits(self) -> tuple[tuple[str, float], ...]:
        """(what for, seconds) in which the core does nothing, the longest first."""
        named = {COPIES: "copies from and to HBM", HOST: "the host"}
        waits = [
            (named.get(what, f"links over {what}"), seconds)
            for what, seconds in self.schedule.exposed.items()
            if seconds > 0
        ]
        return tuple(sorted(waits, key=lambda wait: -wait[1]))

    @cached_property
    def families(self) -> tuple[tuple[str, float], ...]:
        """(family, seconds of the core), in the order of `FAMILIES`, and the waits last: together
        the predicted time.
        """
        sums = dict.fromkeys(FAMILIES, 0.0)
        for one in self.ledger.operations:
            sums[FAMILY_OF[one.kind]] += self.seconds_of(one)
        found = [(family, seconds) for family, seconds in sums.items() if seconds > 0]
        waiting = sum(seconds for _, seconds in self.waits)
        return (*found, (WAITING, waiting)) if waiting else tuple(found)

    @property
    def visible(self) -> tuple[tuple[str, float], ...]:
        """Those of `families` that a picture can show."""
        return tuple(part for part in self.families if part[1] >= 5e-4 * self.seconds)

    @cached_property
    def hbm_share(self) -> float:
        """Of the bandwidth of HBM, at the predicted time."""
        return self.ledger.hbm_bytes / self.chip.hbm_bandwidth / self.seconds if self.seconds else 0

    def row(self, name: str, operations: Iterable[Operation]) -> Row:
        """A row of operations."""
        seconds, hbm_bytes, flops, count, at_peak = 0.0, 0, 0.0, 0, 0.0
        families: dict[str, float] = defaultdict(float)
        times: set[int] = set()
        for one in operations:
            taken = self.seconds_of(one)
            families[FAMILY_OF[one.kind]] += taken or 1e-15 * one.total_seconds
            seconds, count = seconds + taken, count + 1
            hbm_bytes, flops = hbm_bytes + one.total_hbm_bytes, flops + one.times * one.flops
            at_peak += one.at_peak(self.chip)
            if taken:
                times.add(one.times)
        family = max(families, key=lambda key: families[key], default="other")
        of_peak = at_peak / seconds if seconds else 0.0
        of_bandwidth = hbm_bytes / self.chip.hbm_bandwidth / seconds if seconds else 0.0
        return Row(
            name=name,
            operations=count,
            times=times.pop() if len(times) == 1 else 0,
            seconds=seconds,
            share=seconds / self.seconds if self.seconds else 0.0,
            hbm_bytes=hbm_bytes,
            flops=flops,
            of_peak=of_peak,
            of_bandwidth=of_bandwidth,
            lost=max(0.0, seconds * (1.0 - max(of_peak, of_bandwidth))),
            bound=bound(of_peak, of_bandwidth, family),
            family=family,
        )

    def rows(self, by: str = "layer", *, alike: bool = False) -> list[Row]:
        """One row for each layer, op or source line, the longest first.

        Args:
          by: one of `GROUPINGS`.
          alike: one row for all whose names differ in numbers alone: conv*_x/*/norm*.

        Raises:
          ValueError: another grouping.
        """
        if by not in GROUPINGS:
            raise ValueError(f"by={by!r}; known: {', '.join(GROUPINGS)}")
        members: dict[str, list[Operation]] = defaultdict(list)
        for one in self.ledger.operations:
            name = getattr(one, by) or UNNAMED
            members[_NUMBERED.sub("*", name) if alike else name].append(one)
        rows = [self.row(name, found) for name, found in members.items()]
        return sorted(rows, key=lambda row: (-row.seconds, -row.hbm_bytes, row.name))

    @cached_property
    def phases(self) -> tuple[tuple[str, float], ...]:
        """(forward, backward, recomputed or update; seconds of the core)."""
        sums: dict[str, float] = {}
        for name in ("forward", "backward", "recomputed", "update"):
            sums[name] = 0.0
        for one in self.ledger.operations:
            sums[one.phase] += self.seconds_of(one)
        return tuple((name, seconds) for name, seconds in sums.items() if seconds > 0)

    @cached_property
    def collectives(self) -> list[dict[str, Any]]:
        """Totals by kind and mesh axes: times, bytes of the buffers, bytes that a device sends,
        seconds under way.
        """
        found: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        program, links = self.ledger.program, self.ledger.links
        for one in self.ledger.operations:
            if one.kind == "collective" and one.axes:
                line = program.by_name[one.computation][one.name]
                transfer = links.transfer(program, line) if links else None
                kind = transfer.kind if transfer else one.opcode.removesuffix("-start")
                sums = found.setdefault((kind, one.axes), [0, 0, 0])
                sums[0] += one.times
                sums[1] += one.times * one.wire_bytes
                sums[2] += one.total_seconds
        totals = [
            {"kind": kind, "axes": axes, "times": n, "wire_bytes": sent, "seconds": seconds}
            for (kind, axes), (n, sent, seconds) in found.items()
        ]
        return sorted(totals, key=lambda total: -total["seconds"])

    def to_dict(self, by: str = "layer") -> dict[str, Any]:
        """Everything but the program, as JSON holds it; rows grouped as `rows` does."""
        return {
            "subject": dataclasses.asdict(self.subject),
            "seconds": self.seconds,
            "mfu": self.mfu,
            "of_bandwidth": self.hbm_share,
            "made_of": dict(self.families),
            "waits": dict(self.waits),
            "passes": dict(self.phases),
            "by": by,
            "rows": [dataclasses.asdict(row) for row in self.rows(by)],
            "collectives": self.collectives,
            "ledger": self.ledger.to_dict(),
        }


# ---------------------------------------------------------------------------------------- as text
def time(seconds: float) -> str:
    """Three digits and a unit: 58.9 ms, 1.23 s, 870 us."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns" if seconds else "0"


def size(count: float) -> str:
    """Bytes in units of thousands, as bandwidths are: 20.2 GB, 515 MB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def arithmetic(flops: float) -> str:
    """FLOPs: 1.54 TFLOP."""
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if flops >= scale:
            return f"{flops / scale:.3g} {unit}"
    return f"{flops:.0f} FLOP"


def percent(share: float) -> str:
    """A share of 1 in hundredths: 13 %, 0.4 %, <0.1 %."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or not share else f"{100 * share:.1f} %"
