"""When each operation of a compiled program runs, and what the core waits for.

The optimised HLO of a TPU is scheduled: its lines stand in the order in which the core takes them.
A start (`copy-start`, `all-gather-start`, the fusion of an asynchronous collective) hands work to
another lane and the core goes on; its done waits until that lane has finished. The lanes:

    core            operations, one after the other
    copies          between HBM and the chip's own memory: what bandwidth the operations leave
    host            to and from the memory of the host
    ici x, y, z     the links along a torus axis; dcn: between slices

A loop is the schedules of its condition and its body times its trips: a start and its done stand in
one body. Of a conditional the longest branch counts.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from trainlib.chips import Chip
from trainlib.planning.hlo import Instruction, Program, array_bytes
from trainlib.planning.ledger.links import ASSUMPTIONS as OF_LINKS
from trainlib.planning.ledger.links import Links, Transfer
from trainlib.planning.ledger.operation import Operation

# Bytes/s between a chip and its host (How to Scale Your Model, jax-ml.github.io/scaling-book/tpus).
HOST_BANDWIDTH = {"v6e": 32e9}
USUAL_HOST_BANDWIDTH = 16e9

ASSUMPTIONS = (
    "the core takes the operations in the compiler's order, each for as long as it takes alone",
    "copies between HBM and the chip's memory run beside them, with the bandwidth they leave",
    "collectives run beside them at full speed; those along one torus axis run one after the other",
    "weights that the compiler fetches before a step starts are there: the step before it fetches "
    "them with the bandwidth that it leaves, and takes longer where that is too little",
    "of a conditional the longest branch counts, in time, bytes and FLOPs, and no other",
    "waiting for other devices that are slower, and the launch of a step, are not counted",
    *OF_LINKS,
)


@dataclasses.dataclass(frozen=True)
class Span:
    """A stretch of a lane, in seconds from the start of the step.

    The body of a loop is drawn once, stretched over all its trips, so that lengths are totals.
    """

    lane: str
    start: float
    end: float
    name: str


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The predicted time of a program and what it is made of.

    Attributes:
      seconds: predicted.
      core_seconds: of these the core computes; in the others it waits.
      bounds: no schedule is shorter: "arithmetic" at the peak, "memory" for the bytes through HBM,
        "links" for the busiest lane between devices.
      exposed: seconds in which the core waits: "copies", "host", or the mesh axes of collectives,
        joined by "+".
      in_flight: seconds in which such work is under way, by the same names.
      spans: for a timeline.
      assumptions: a sentence each.
    """

    seconds: float
    core_seconds: float
    bounds: Mapping[str, float]
    exposed: Mapping[str, float]
    in_flight: Mapping[str, float]
    spans: tuple[Span, ...]
    assumptions: tuple[str, ...] = ASSUMPTIONS

    @property
    def exposed_communication(self) -> float:
        """Share of the time in which the core waits for other devices."""
        waits = sum(t for name, t in self.exposed.items() if name not in (COPIES, HOST))
        return waits / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything but the spans, as JSON holds it."""
        names = ("seconds", "core_seconds", "bounds", "exposed", "in_flight", "assumptions")
        return {name: getattr(self, name) for name in names}


COPIES, HOST, CORE = "copies", "host", "core"
_PARTS_OF_LOOP = tuple(re.compile(rf"\b{part}=%?([\w.\-]+)") for part in ("condition", "body"))
FOR_THE_NEXT = "what the next step needs"  # in place of the name of an operation


def schedule(
    program: Program, operations: Mapping[str, Operation], links: Links, chip: Chip
) -> Schedule:
    """Walks a scheduled program in order.

    Args:
      program: with `is_scheduled=true`.
      operations: by the name of their instruction; one that is not listed takes no time.
      links: of the devices that it runs on.
      chip: which they are.
    """
    scheduler = _Scheduler(program, operations, links, chip)
    run = scheduler.whole()
    every = operations.values()
    bounds = {
        "arithmetic": sum(one.at_peak(chip) for one in every),
        "memory": sum(one.total_hbm_bytes for one in every) / chip.hbm_bandwidth,
        "links": max(run.lanes.values(), default=0.0),
    }
    return Schedule(
        seconds=run.seconds,
        core_seconds=run.seconds - sum(run.exposed.values()),
        bounds=bounds,
        exposed=dict(run.exposed),
        in_flight=dict(run.in_flight),
        spans=tuple(run.spans),
    )


def of_longest_branches(
    program: Program, operations: Mapping[str, Operation], links: Links, chip: Chip
) -> tuple[Program, dict[str, Operation]]:
    """A program and its operations, where of each conditional the branch counts that takes longest;
    what stands in the others runs 0 times. Arguments are those of `schedule`.
    """
    branches = _Scheduler(program, operations, links, chip).branches()
    chosen = program.taking(branches)
    if not branches:
        return program, dict(operations)
    return chosen, {
        name: dataclasses.replace(one, times=chosen.times.get(one.computation, 0))
        for name, one in operations.items()
    }


# Operations that do nothing but pass over memory.
_STREAMING = ("elementwise", "reduction", "copy", "convert")


def at_bandwidth(operations: Iterable[Operation], chip: Chip) -> dict[str, Operation]:
    """The operations by name, where those that only stream take no longer than their bytes need.

    The compiler prices such an operation at 1.2 (float32) to 2.8 times (bfloat16) its bytes over
    the bandwidth. What a chip takes lies between.
    """
    found = {}
    for one in operations:
        least = one.hbm_bytes / chip.hbm_bandwidth
        if one.kind in _STREAMING and one.basis == "compiler" and 0 < least < one.seconds:
            one = dataclasses.replace(one, seconds=least)
        found[one.name] = one
    return found


class _Run:
    """One execution of a computation, or all trips of a loop."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.hbm_bytes = 0.0  # of all that runs, also beside the core
        self.exposed: dict[str, float] = defaultdict(float)
        self.in_flight: dict[str, float] = defaultdict(float)
        self.lanes: dict[str, float] = defaultdict(float)  # seconds in which links are busy
        self.spans: list[Span] = []

    def add(self, run: _Run, times: int) -> None:
        """Puts another run, `times` times, behind what is here."""
        for mine, theirs in (
            (self.exposed, run.exposed),
            (self.in_flight, run.in_flight),
            (self.lanes, run.lanes),
        ):
            for name, seconds in theirs.items():
                mine[name] += times * seconds
        for span in run.spans:
            start, end = (self.seconds + times * at for at in (span.start, span.end))
            self.spans.append(Span(span.lane, start, end, span.name))


class _Scheduler:
    """The schedules of all computations of a program, each made once."""

    def __init__(
        self,
        program: Program,
        operations: Mapping[str, Operation],
        links: Links,
        chip: Chip,
    ) -> None:
        self.program, self.operations, self.links = program, operations, links
        self.hbm_bandwidth = chip.hbm_bandwidth
        self.host_bandwidth = HOST_BANDWIDTH.get(chip.name, USUAL_HOST_BANDWIDTH)
        self._runs: dict[str, _Run] = {}

    def whole(self) -> _Run:
        """The step. In a row of steps each fetches what the next needs before it starts: beside the
        core, but through the same memory, so that no step is shorter than all its bytes take.
        """
        run = self.run(self.program.entry)
        missing = run.hbm_bytes / self.hbm_bandwidth - run.seconds
        if missing > 0:
            end = run.seconds + missing
            run.spans.append(Span(COPIES, run.seconds, end, FOR_THE_NEXT))
            run.exposed[COPIES] += missing
            run.seconds = end
        return run

    def run(self, computation: str) -> _Run:
        if computation not in self._runs:
            walk = _Walk(self)
            for line in self.program.computations[computation]:
                walk.take(line)
            self._runs[computation] = walk.finish()
        return self._runs[computation]

    def longest(self, names: list[str]) -> str:
        """Which of these computations takes longest; "" where the program has none of them."""
        known = [name for name in names if name in self.program.computations]
        return max(known, key=lambda name: self.run(name).seconds, default="")

    def branches(self) -> dict[str, str]:
        """Conditional -> its longest branch."""
        found = {
            line.name: self.longest(line.called)
            for name in self.program.executed
            for line in self.program.computations[name]
            if line.opcode == "conditional"
        }
        return {conditional: branch for conditional, branch in found.items() if branch}


class _Walk:
    """A core that takes the lines of one computation in order."""

    def __init__(self, scheduler: _Scheduler) -> None:
        self.of = scheduler
        self.run = _Run()
        self.free: dict[str, float] = defaultdict(
            float
        )  # lane of links or of the host -> when it is free
        self.queue: list[_Copy] = []  # first in, first out
        self.copies: dict[str, _Copy] = {}  # start -> copy
        self.ends: dict[str, tuple[float, str]] = {}  # start -> when it ends, what it is
        self.received: dict[str, str] = {}  # recv -> what it has in common with its send

    # ------------------------------------------------------------------ one line
    def take(self, line: Instruction) -> None:
        if operation := self.of.operations.get(line.name):
            self.run.hbm_bytes += operation.hbm_bytes
        if line.opcode in ("while", "call", "conditional"):
            self._inside(line)
        elif transfer := self.of.links.transfer(self.of.program, line):
            self._collective(line, transfer)
        elif line.opcode == "recv":
            self.received[line.name] = _rendezvous(line)
        elif _ends(line, self.of.program):
            self._wait(line)
        elif line.opcode.endswith("-start"):
            self._start_copy(line)
        elif operation:
            self._compute(operation)

    def finish(self) -> _Run:
        """Waits for what nobody has waited for."""
        self._drain(len(self.queue))
        last = max(self.free.values(), default=0.0)
        if last > self.run.seconds:
            what = max(self.ends.values())[1]
            self._idle(last - self.run.seconds, what)
        return self.run

    def _inside(self, line: Instruction) -> None:
        if line.opcode == "while":
            trips = self.of.program.trips(line)
            for part in _PARTS_OF_LOOP:  # drawn one after the other, each with all its trips
                if found := part.search(line.rest):
                    self._repeat(found[1], trips)
        else:
            taken = self.of.program.taken.get(line.name)
            self._repeat(taken or self.of.longest(line.called), 1)

    def _repeat(self, computation: str, times: int) -> None:
        if computation not in self.of.program.computations:
            return
        inner = self.of.run(computation)
        self.run.add(inner, times)
        self.run.hbm_bytes += times * inner.hbm_bytes
        self._advance(times * inner.seconds, times * inner.hbm_bytes)

    def _compute(self, operation: Operation) -> None:
        if operation.seconds:
            start, end = self.run.seconds, self.run.seconds + operation.seconds
            self.run.spans.append(Span(CORE, start, end, operation.name))
        self._advance(operation.seconds, operation.hbm_bytes)

    # ------------------------------------------------------------------ collectives
    def _collective(self, line: Instruction, transfer: Transfer) -> None:
        lanes = [_lane(lane) for lane in transfer.lanes]
        what = "+".join(transfer.axes)
        end = self._occupy(lanes, transfer.seconds, line.name, what)
        for lane in lanes:
            self.run.lanes[lane] += transfer.seconds
        if _goes_on(line, self.of.program):
            self.ends[_key(line, self.of.program)] = end, what
        else:
            self._idle(max(0.0, end - self.run.seconds), what)

    def _occupy(self, lanes: list[str], seconds: float, name: str, what: str) -> float:
        start = max([self.run.seconds, *(self.free[lane] for lane in lanes)])
        for lane in lanes:
            self.free[lane] = start + seconds
            self.run.spans.append(Span(lane, start, start + seconds, name))
        self.run.in_flight[what] += seconds
        return start + seconds

    # ------------------------------------------------------------------ copies
    def _start_copy(self, line: Instruction) -> None:
        operation = self.of.operations.get(line.name)
        if "S(5)" in line.type:  # the memory of the host
            size = max(array_bytes(line.type), default=0)
            seconds = size / self.of.host_bandwidth
            end = self._occupy([HOST], seconds, line.name, HOST)
            self.ends[line.name] = end, HOST
            return
        size = operation.hbm_bytes if operation else 0
        self.run.in_flight[COPIES] += size / self.of.hbm_bandwidth
        if "cross_program_prefetch_index=" in line.rest:
            size = 0  # has come beside the step before, as in `_Scheduler.whole`
        copy = _Copy(line.name, float(size), self.run.seconds)
        self.copies[line.name] = copy
        self.queue.append(copy)

    def _drain(self, count: int) -> None:
        """Waits for the first copies of the queue."""
        left = sum(copy.left for copy in self.queue[:count])
        self._idle(left / self.of.hbm_bandwidth, COPIES)

    def _wait(self, line: Instruction) -> None:
        """At a done: idles until what it ends has ended."""
        key = _key(line, self.of.program)
        key = self.received.get(key, key)
        if key in self.ends:
            end, what = self.ends[key]
            self._idle(max(0.0, end - self.run.seconds), what)
        elif (copy := self.copies.get(key)) and copy in self.queue:
            self._drain(self.queue.index(copy) + 1)

    # ------------------------------------------------------------------ time
    def _idle(self, seconds: float, what: str) -> None:
        if seconds > 0:
            self.run.exposed[what] += seconds
        self._advance(seconds, 0.0)

    def _advance(self, seconds: float, hbm_bytes: float) -> None:
        """Lets time pass in which the core reads and writes so many bytes of HBM; copies have what
        is left of the bandwidth.
        """
        spare = max(0.0, seconds * self.of.hbm_bandwidth - hbm_bytes)
        rate = spare / seconds if seconds else 0.0
        now = self.run.seconds
        while self.queue and self.queue[0].left <= spare * (1 + 1e-9):
            copy = self.queue.pop(0)
            start, spare = max(now, copy.start), spare - copy.left
            now += copy.left / rate if rate else 0.0
            self.run.spans.append(Span(COPIES, start, now, copy.name))
        if self.queue:
            self.queue[0].left -= spare
        self.run.seconds += seconds


@dataclasses.dataclass(eq=False)
class _Copy:
    """An asynchronous copy and the bytes of it that are still to come."""

    name: str
    left: float
    start: float


def _lane(axis: str) -> str:
    return f"ici {axis}" if axis in ("x", "y", "z") else axis


def _chain(line: Instruction, program: Program) -> str:
    """What names an asynchronous collective in the fusions that it stands in; "" elsewhere."""
    if line.opcode != "fusion":
        return ""
    for name in line.called:
        for inner in program.computations.get(name, []):
            chain = re.search(r'chain_id="(\d+)"', inner.rest)
            if chain:
                return chain[1]
    return ""


def _rendezvous(line: Instruction) -> str:
    """What the send and the recv of a transfer between slices have in common."""
    name = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', line.rest)
    return name[1] if name else line.name


def _has(line: Instruction, program: Program, target: str) -> bool:
    return line.opcode == "fusion" and any(
        target in inner.rest for name in line.called for inner in program.computations.get(name, [])
    )


def _goes_on(line: Instruction, program: Program) -> bool:
    """Whether a collective is only started here."""
    return line.opcode.endswith(("-start", "send")) or _has(line, program, '"AsyncCollectiveStart"')


def _ends(line: Instruction, program: Program) -> bool:
    return line.opcode.endswith("-done") or _has(line, program, '"AsyncCollectiveDone"')


def _key(line: Instruction, program: Program) -> str:
    """What a start and its done have in common."""
    if line.opcode == "send":
        return _rendezvous(line)
    if line.opcode.endswith("-done"):
        return line.operands[0]
    chain = _chain(line, program)
    return f"chain {chain}" if chain else line.name
