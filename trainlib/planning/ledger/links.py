"""How long a collective takes over the links of a slice.

The devices of a mesh stand at coordinates of a torus. A group of devices that talk to each other
occupies some of its axes, each with an extent (how many of the group lie along it), a stride (how
far they lie apart) and perhaps a way round. From these follow the bytes that each link carries:

    all-gather, reduce-scatter, all-reduce   rings in both directions over all axes of the group,
                                             or one through all of it where the compiler says so
    all-to-all                               half of each buffer crosses the middle of each axis
    collective-permute                       shortest ways, axis by axis; the fullest link decides

Between slices every device has its share of the data centre network. What is assumed stands in
`ASSUMPTIONS`, for the report.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainlib.chips import DCN_BANDWIDTH, Target
from trainlib.planning.hlo import KINDS, Instruction, Program, array_bytes

# One-way bytes/s of a link over its nominal 50 or 100 GB/s, as measured on v4, v5e, v5p and v6e:
# 45 and 90 GB/s (How to Scale Your Model, jax-ml.github.io/scaling-book/tpus, its table of chips).
LINK_EFFICIENCY = 0.9
HOP_SECONDS = 1e-6  # from one chip to the next, by the same source
DCN = "dcn"
DIE = "die"  # between the two devices of a chip of tpu7x
_AXES = "xyz"
# How the compiler names an algorithm that is one ring, whatever the axes of its group.
# The part of a collective that runs between slices, as send and recv of the runtime.
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([^}]*)\}')
_OF_RUNTIME = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ONE_TO_ONE": "collective-permute",
}
_ONE_RING = re.compile(r'"emitter":"1D|"strategy":"StrategyRing"|"SinglePhaseRing')

ASSUMPTIONS = (
    f"a link carries {LINK_EFFICIENCY:.0%} of the chip's interconnect over its number of links",
    f"a hop takes {1e6 * HOP_SECONDS:.0f} us",
    "v5e and v6e close a ring only along sides of 16, v4, v5p and tpu7x where all sides are "
    "multiples of 4; twisted tori are not modelled",
    "rings use both directions of their links, and all torus axes of a group at once unless the "
    "compiler names a single ring",
    f"between slices each chip has {DCN_BANDWIDTH / 1e9:.2f} GB/s",
)


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What a collective does to the links, once.

    Attributes:
      kind: one of `hlo.KINDS`.
      axes: mesh axes it runs over.
      size: devices in a group.
      bytes: of the whole buffer on one device.
      wire_bytes: that one device sends.
      seconds: over its links, with nothing else on them.
      lanes: the torus axes whose links it takes: "x", "y", "z", `DIE`, `DCN`.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    bytes: int
    wire_bytes: float
    seconds: float
    lanes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Line:
    """A torus axis as a group sees it."""

    lane: str
    extent: int
    ways: int  # 2 where the ring closes, else 1
    bandwidth: float  # bytes/s one way of a link, divided among the groups that share it

    @property
    def hops(self) -> int:
        return self.extent // 2 if self.ways == 2 else self.extent - 1


def wraps(generation: str, sides: Sequence[int]) -> tuple[bool, ...]:
    """Which sides of a slice close to rings.

    A pod of v5e or v6e is 16 x 16, and only its full sides close. Slices of v4, v5p and tpu7x are
    made of cubes of 4 x 4 x 4 whose faces optical switches connect; below a cube nothing closes.
    """
    if generation in ("v5e", "v6e"):
        return tuple(side == 16 for side in sides)
    return tuple(all(side % 4 == 0 for side in sides) for _ in sides)


class Links:
    """The links of a target, as the devices of a mesh see them.

    Args:
      target: whose chips they are.
      devices: of the mesh, in its order (`mesh.devices.flat`); JAX's descriptions of TPUs, with
        `coords`. None for devices without a torus, as GPUs: every group has all the bandwidth.
    """

    def __init__(self, target: Target, devices: Sequence[Any] | None):
        chip = target.chip
        sides = [int(side) for side in target.topology.split("x")] if target.topology else []
        self.target = target
        self.sides = tuple(sides)
        self.wraps = wraps(chip.name, sides) if sides else ()
        count = 2 * len(sides) or 1
        self.link_bandwidth = chip.ici_bandwidth / count * LINK_EFFICIENCY
        self._places = self._slices = None
        if devices is not None and sides:
            self._places = np.array([[*_coords(one, len(sides)), _core(one)] for one in devices])
            self._slices = np.array([getattr(one, "slice_index", 0) or 0 for one in devices])
        self._known: dict[tuple[Any, ...], tuple[float, tuple[str, ...]]] = {}

    # ------------------------------------------------------------------ what a program asks
    def transfer(self, program: Program, instruction: Instruction) -> Transfer | None:
        """What an instruction sends: a collective, its start, or a fusion around it.

        Returns None for everything else, also for the end of a collective and for the fusions that
        one which is under way stands in.
        """
        if instruction.opcode == "send" and (kind := _BETWEEN.search(instruction.rest)):
            return self._between_slices(program, instruction, kind[1])
        found = collective_line(program, instruction)
        if found is None:
            return None
        computation, line = found
        collective = program.collective(computation, line, 1)
        if collective is None:
            return None
        groups, _ = program.groups(line)
        one_ring = bool(_ONE_RING.search(line.rest))
        seconds, lanes = self.seconds(collective.kind, groups, collective.bytes, one_ring)
        return Transfer(
            kind=collective.kind,
            axes=collective.axes,
            size=collective.size,
            bytes=collective.bytes,
            wire_bytes=collective.wire_bytes,
            seconds=seconds,
            lanes=lanes,
        )

    def _between_slices(self, program: Program, line: Instruction, kind: str) -> Transfer:
        """What a device sends to its peers in other slices; `kind` as the runtime names it."""
        size = max(array_bytes(line.type), default=0)
        named = _SLICES.search(line.rest)
        slices = len(named[1].split(",")) if named else self.target.slices
        share = {
            "ALL_REDUCE": 2 * (slices - 1) / slices,
            "ALL_GATHER": slices - 1.0,
            "ONE_TO_ONE": 1.0,
        }.get(kind, (slices - 1) / slices)
        return Transfer(
            kind=_OF_RUNTIME.get(kind, "all-to-all"),
            axes=self._axes_of_slices(program),
            size=slices,
            bytes=size,
            wire_bytes=share * size,
            seconds=share * size / DCN_BANDWIDTH,
            lanes=(DCN,),
        )

    def _axes_of_slices(self, program: Program) -> tuple[str, ...]:
        """The mesh axes along which devices lie in different slices."""
        if self._slices is None or len(self._slices) != math.prod(program.mesh.values()):
            return (DCN,)
        numbers = self._slices.reshape(list(program.mesh.values()))
        varying = [name for i, name in enumerate(program.mesh) if np.ptp(numbers, axis=i).any()]
        return tuple(varying) or (DCN,)

    def seconds(
        self, kind: str, groups: np.ndarray | None, size: float, one_ring: bool = False
    ) -> tuple[float, tuple[str, ...]]:
        """Time of one collective and the lanes it takes.

        Args:
          kind: one of `hlo.KINDS`.
          groups: numbers of devices [groups, members]; pairs (from, to) of a permute; None where
            they are not known, and then all devices.
          size: bytes of the whole buffer on one device.
          one_ring: the compiler runs one ring through the whole group.
        """
        if self._places is None or self._slices is None:
            return self._without_torus(kind, groups, size)
        if groups is None:
            groups = np.arange(len(self._places))[None]
        key = (kind, groups.shape, groups.tobytes(), size, one_ring)
        if key not in self._known:
            if kind == "collective-permute":
                self._known[key] = self._paths(groups, size)
            else:
                self._known[key] = self._group(kind, groups, size, one_ring)
        return self._known[key]

    def _without_torus(
        self, kind: str, groups: np.ndarray | None, size: float
    ) -> tuple[float, tuple[str, ...]]:
        members = groups.shape[-1] if groups is not None else self.target.devices
        sent = _factor(kind) * size * (members - 1) / max(members, 1)
        return sent / (self.target.chip.ici_bandwidth * LINK_EFFICIENCY), ("links",)

    def _group(
        self, kind: str, groups: np.ndarray, size: float, one_ring: bool
    ) -> tuple[float, tuple[str, ...]]:
        seconds, lanes, slices, inside = self._inside(kind, groups, size, one_ring)
        if slices > 1:
            shared = 1 if "all-to-all" in kind else inside
            seconds += _factor(kind) * size * (slices - 1) / slices / shared / DCN_BANDWIDTH
            lanes = (*lanes, DCN)
        return seconds, lanes

    # ------------------------------------------------------------------ the torus
    def _inside(
        self, kind: str, groups: np.ndarray, size: float, one_ring: bool
    ) -> tuple[float, tuple[str, ...], int, int]:
        """Seconds and lanes within a slice, of the slowest group; slices that a group spans; its
        members in one of them.
        """
        assert self._slices is not None
        slowest, lanes, slices, inside = 0.0, (), 1, 1
        for group in groups:
            slices = len(set(self._slices[group].tolist()))
            members = group[self._slices[group] == self._slices[group[0]]]
            inside = len(members)
            lines = self._lines(members)
            if lines is None:  # of one group: others like it use the same links
                return *self._ring_of_paths(kind, groups, size), slices, inside
            if len(lines) > 1 and one_ring and "all-to-all" not in kind:
                lines = [_through(lines)]
            act = _all_to_all if "all-to-all" in kind else _rings
            seconds = _factor(kind) * act(lines, size) if lines else 0.0
            if seconds > slowest:
                slowest = seconds
                lanes = tuple(lane for line in lines for lane in line.lane.split("+"))
        return slowest, lanes, slices, inside

    def _lines(self, members: np.ndarray) -> list[_Line] | None:
        """The torus axes of the members of a group; None where they fill no box."""
        assert self._places is not None
        at = [sorted(set(column.tolist())) for column in self._places[members].T]
        even = all(len({b - a for a, b in itertools.pairwise(one)}) < 2 for one in at)
        if not even or math.prod(len(one) for one in at) != len(members):
            return None
        return [self._line(axis, one) for axis, one in enumerate(at) if len(one) > 1]

    def _ring_of_paths(
        self, kind: str, groups: np.ndarray, size: float
    ) -> tuple[float, tuple[str, ...]]:
        """Rings in both directions through groups that fill no box, each from a device to the
        nearest that is left.
        """
        pairs = []
        for group in groups:
            way = self._nearest(group)
            pairs += [*itertools.pairwise([*way, way[0]])]
        members = groups.shape[1]
        both = np.array(pairs + [(sink, source) for source, sink in pairs])
        step = size / members / 2
        seconds, lanes = self._paths(both, step)
        return _factor(kind) * (members - 1) * seconds, lanes

    def _nearest(self, group: np.ndarray) -> list[int]:
        """The members of a group, each followed by the nearest that is left."""
        places = self._places
        assert places is not None
        left, way = group.tolist()[1:], [int(group[0])]
        while left:
            here = places[way[-1]]
            way.append(min(left, key=lambda one: len(self._way(here, places[one]))))
            left.remove(way[-1])
        return way

    def _line(self, axis: int, at: list[int]) -> _Line:
        if axis == len(self.sides):  # the two devices of one chip
            return _Line(DIE, len(at), 1, self.target.chip.ici_bandwidth * LINK_EFFICIENCY)
        stride = max(after - before for before, after in itertools.pairwise(at))
        whole = self.wraps[axis] and len(at) * stride == self.sides[axis] and len(at) > 2
        bandwidth = self.link_bandwidth / stride
        return _Line(_AXES[axis], len(at), 2 if whole else 1, bandwidth)

    def _paths(self, pairs: np.ndarray, size: float) -> tuple[float, tuple[str, ...]]:
        """Every pair (from, to) sends `size` bytes at once."""
        assert self._places is not None
        assert self._slices is not None
        loads: Counter[tuple[Any, ...]] = Counter()
        longest, slow, lanes = 0, False, set()
        for source, sink in pairs.tolist():
            if self._slices[source] != self._slices[sink]:
                slow = True
                continue
            way = self._way(self._places[source], self._places[sink])
            longest = max(longest, len(way))
            loads.update((int(self._slices[source]), *link) for link in way)
            lanes |= {_AXES[axis] if axis < len(self.sides) else DIE for axis, *_ in way}
        fullest = max(loads.values(), default=0)
        seconds = fullest * size / self.link_bandwidth + longest * HOP_SECONDS
        if slow:
            return max(seconds, size / DCN_BANDWIDTH), (*sorted(lanes), DCN)
        return seconds, tuple(sorted(lanes))

    def _way(self, source: np.ndarray, sink: np.ndarray) -> list[tuple[Any, ...]]:
        """Directed links (axis, step, from) of the shortest way, axis by axis."""
        here, way = source.copy(), []
        for axis in range(len(source)):
            side = self.sides[axis] if axis < len(self.sides) else 2
            distance = int(sink[axis] - here[axis])
            if axis < len(self.sides) and self.wraps[axis] and abs(distance) > side / 2:
                distance -= int(math.copysign(side, distance))
            step = 1 if distance > 0 else -1
            for _ in range(abs(distance)):
                way.append((axis, step, *here.tolist()))
                here[axis] = (here[axis] + step) % side
        return way


def _factor(kind: str) -> int:
    """An all-reduce is a reduce-scatter and an all-gather."""
    return 2 if kind == "all-reduce" else 1


def _through(lines: Sequence[_Line]) -> _Line:
    """One closed ring through a box of several axes, over the links of the slowest."""
    return _Line(
        lane="+".join(line.lane for line in lines),
        extent=math.prod(line.extent for line in lines),
        ways=2,
        bandwidth=min(line.bandwidth for line in lines),
    )


def _rings(lines: Sequence[_Line], size: float) -> float:
    """Seconds of an all-gather of `size` bytes, or of a reduce-scatter: at best every link of the
    group's axes is busy all the time.
    """
    members = math.prod(line.extent for line in lines)
    bandwidth = sum(line.ways * line.bandwidth for line in lines)
    if not bandwidth:
        return 0.0
    return size * (members - 1) / members / bandwidth + HOP_SECONDS * sum(x.hops for x in lines)


def _all_to_all(lines: Sequence[_Line], size: float) -> float:
    """Half of what each half of an axis holds crosses its middle, in both directions at once."""
    crossing = [line.extent * size / 4 / (line.ways * line.bandwidth) for line in lines]
    return max(crossing) + HOP_SECONDS * sum(line.hops for line in lines)


def _coords(device: Any, axes: int) -> list[int]:
    return [int(one) for one in device.coords[:axes]]


def _core(device: Any) -> int:
    return int(getattr(device, "core_on_chip", 0) or 0)


def collective_line(program: Program, instruction: Instruction) -> tuple[str, Instruction] | None:
    """The line of a collective that an instruction runs or starts, and the computation it stands
    in.

    TPU programs hide collectives in fusions: a reduce-scatter is an all-reduce with a slice, and an
    asynchronous one stands in its start, in every fusion beside which it runs, and in its end. Only
    the start counts.
    """
    if instruction.opcode.removesuffix("-start") in KINDS:
        return "", instruction
    if instruction.opcode not in ("fusion", "async-start", "call"):
        return None
    for name in instruction.called:
        lines = program.computations.get(name, [])
        starts = any('"AsyncCollectiveStart"' in line.rest for line in lines)
        for line in lines:
            inner = line.opcode.removesuffix("-start")
            if inner in KINDS and (starts or "chain_id=" not in line.rest):
                return name, line
    return None
