"""What a compiled program moves between devices, read from its optimised HLO.

Every collective is counted as often as it runs (loops by their trip counts), with the mesh axes it
runs over and the bytes of its whole buffer: the gathered, the not yet scattered. What the text of
TPU programs hides:

- loops carry no trip count: `hlo.loops` finds it;
- which branch of a conditional runs is for data to say: all count until one is chosen (`taking`);
- groups are printed in three ways; all become sets of device numbers, compared with the mesh axes;
- a reduce-scatter may be an all-reduce with a slice, inside a fusion called all-reduce-scatter;
- an asynchronous collective stands in several fusions, of which only the first starts it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from trainlib.planning.hlo import loops
from trainlib.planning.hlo.frames import Frames
from trainlib.planning.hlo.instruction import Instruction, parse
from trainlib.planning.hlo.layout import arrays

KINDS = (
    *("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute"),
    *("ragged-all-to-all", "collective-broadcast"),
)
# What runs the instructions of the computations that it names, one by one.
_STEPPED = ("while", "conditional", "call", "async-start")
OTHER = "other"  # groups along no set of whole mesh axes

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")


def array_bytes(text: str) -> list[int]:
    """Bytes of every array type in a piece of HLO text, without padding of layouts."""
    return [array.bytes for array in arrays(text)]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes it runs over, or (`OTHER`,).
      size: devices in a group.
      bytes: of the whole buffer on one device, once.
      times: how often it runs in a step.
      op: where in the program it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    bytes: int
    times: int
    op: str = ""

    @property
    def wire_bytes(self) -> float:
        """Bytes one device sends in a step: by rings, which are optimal in bandwidth."""
        share = (self.size - 1) / self.size
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.bytes * self.times


@dataclasses.dataclass(frozen=True)
class Total:
    """All collectives of one kind over the same axes; `largest` is the bytes of the largest one."""

    kind: str
    axes: tuple[str, ...]
    times: int
    bytes: int
    largest: int
    wire_bytes: float


class Program:
    """A parsed program.

    Args:
      text: `compiled.as_text()`.
      mesh: axis -> size, in the order in which devices are numbered.
    """

    def __init__(self, text: str, mesh: Mapping[str, int]):
        self.mesh = dict(mesh)
        self.taken: Mapping[str, str] = {}  # conditional -> the branch that counts
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        head_lines: list[str] = []
        current: list[Instruction] = []
        for raw in _lines(text):
            line = raw.strip()
            if not raw.startswith(" "):
                head = _HEAD.match(line)
                if head:
                    current = self.computations.setdefault(head[1], [])
                    if line.startswith("ENTRY"):
                        self.entry = head[1]
                elif not self.computations:
                    head_lines.append(line)
                continue
            parsed = parse(line)
            if parsed:
                current.append(parsed)
        self.has_gradients = "transpose(jvp(" in text
        self.frames = Frames(head_lines)
        # Numbers of results that take the place of an argument.
        self.donated = {
            int(number) for number in re.findall(r"\{(\d+)\}: \(\d+, \{", "".join(head_lines[:1]))
        }

    # ------------------------------------------------------------------ how often things run
    def taking(self, branches: Mapping[str, str]) -> Program:
        """The same program, where of each of these conditionals one branch counts.

        Args:
          branches: name of a conditional -> name of the computation.
        """
        chosen = copy.copy(self)
        chosen.taken = dict(branches)
        for counted in ("times", "collectives"):
            chosen.__dict__.pop(counted, None)
        return chosen

    @cached_property
    def times(self) -> dict[str, int]:
        """Computation -> how often it runs in one execution of the program."""
        counted: Counter[str] = Counter({self.entry: 1})
        # A computation is printed before those that call it.
        for name in reversed(self.computations):
            if not counted[name]:
                continue
            for instruction in self.computations[name]:
                trips = self.trips(instruction) if instruction.opcode == "while" else 1
                if instruction.opcode in ("async-update", "async-done"):
                    continue  # they name what their start has run
                taken = self.taken.get(instruction.name)
                for called in [taken] if taken else instruction.called:
                    if called in self.computations:
                        counted[called] += counted[name] * trips
        return {name: times for name, times in counted.items() if times}

    @cached_property
    def by_name(self) -> dict[str, dict[str, Instruction]]:
        """Computation -> name -> instruction."""
        return {
            name: {line.name: line for line in lines} for name, lines in self.computations.items()
        }

    @cached_property
    def executed(self) -> list[str]:
        """The computations whose instructions run one by one, the entry first: it, bodies and
        conditions of loops, branches, calls. What is fused or applied to elements is not among
        them.
        """
        found = [self.entry]
        for name in found:
            for instruction in self.computations[name]:
                if instruction.opcode in _STEPPED:
                    found += [c for c in instruction.called if c in self.computations]
        return list(dict.fromkeys(found))

    @cached_property
    def _trips(self) -> dict[str, loops.Trips]:
        return {
            line.name: loops.trips(line, lines, self.by_name)
            for lines in self.by_name.values()
            for line in lines.values()
            if line.opcode == "while"
        }

    def trips(self, loop: Instruction) -> int:
        """Trips of a loop; 1 where they are not known."""
        known = self._trips[loop.name].count
        return 1 if known is None else known

    @property
    def doubtful_loops(self) -> dict[str, loops.Trips]:
        """Loops whose trips depend on data, and that run; the bodies of those without a count are
        counted once.
        """
        runs = {line.name for name in self.times for line in self.computations[name]}
        return {name: one for name, one in self._trips.items() if one.doubt and name in runs}

    # ------------------------------------------------------------------ collectives
    @cached_property
    def collectives(self) -> list[Collective]:
        """Every collective that runs, with repetitions."""
        counted = []
        for name, lines in self.computations.items():
            times = self.times.get(name, 0)
            starts = any('"AsyncCollectiveStart"' in line.rest for line in lines)
            for line in lines if times else ():
                # The same asynchronous collective stands in every fusion that it overlaps with.
                if "chain_id=" in line.rest and not starts:
                    continue
                parsed = self.collective(name, line, times)
                if parsed:
                    counted.append(parsed)
        return counted

    def collective(self, computation: str, line: Instruction, times: int) -> Collective | None:
        """A line of a computation as a collective that runs `times` times; None if it is none."""
        kind = line.opcode.removesuffix("-start")
        if kind not in KINDS:
            return None
        sizes = array_bytes(line.type)
        size = max(sizes) if line.opcode.endswith("-start") else sum(sizes)
        if kind == "all-reduce" and "all-reduce-scatter" in computation:
            kind = "reduce-scatter"
        groups, number = self.groups(line)
        if kind == "reduce-scatter" and line.opcode.startswith("reduce-scatter"):
            size *= number
        if number < 2:
            return None
        return Collective(kind, self._axes(groups), number, size, times, line.op_name)

    def totals(self) -> list[Total]:
        """Collectives added up by kind and axes, the most bytes first."""
        groups: dict[tuple[str, tuple[str, ...]], list[Collective]] = defaultdict(list)
        for one in self.collectives:
            groups[one.kind, one.axes].append(one)
        totals = [
            Total(
                *key,
                times=sum(one.times for one in counted),
                bytes=sum(one.times * one.bytes for one in counted),
                largest=max(one.bytes for one in counted),
                wire_bytes=sum(one.wire_bytes for one in counted),
            )
            for key, counted in groups.items()
        ]
        return sorted(totals, key=lambda total: -total.bytes)

    def groups(self, line: Instruction) -> tuple[np.ndarray | None, int]:
        """Groups of devices [groups, members], or None where the text names them in no known way,
        and the number of members. Of a permute: its pairs (from, to) [pairs, 2].
        """
        devices = math.prod(self.mesh.values())
        pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", line.rest)
        if pairs:
            numbers = np.array(re.findall(r"(\d+),(\d+)", pairs[1]), int)
            return numbers, 2
        named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line.rest)
        if named:
            return self._named(named[1], named[2])
        iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line.rest)
        if iota:
            shape, dims = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
            numbers = np.arange(math.prod(dims)).reshape(dims)
            if iota[3]:
                numbers = numbers.transpose([int(n) for n in iota[3].split(",")])
            return numbers.reshape(shape), shape[-1]
        listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line.rest)
        if listed:
            groups = [
                [int(n) for n in one.split(",")] for one in re.findall(r"\{([\d,]+)\}", listed[1])
            ]
            return np.array(groups), len(groups[0])
        return np.arange(devices)[None], devices

    @staticmethod
    def _named(axes: str, over: str) -> tuple[np.ndarray | None, int]:
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes)}
        chosen = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over)
        grid = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        names, shape = [], []
        for name, size in sizes.items():
            part = next((c for c in chosen if c[0] == name and c[1]), None)
            split = [size] if part is None else [int(part[1]), int(part[2]), -1]
            names += [(name, index == 1 or part is None) for index in range(len(split))]
            shape += (
                split
                if part is None
                else [int(part[1]), int(part[2]), size // int(part[1]) // int(part[2])]
            )
        wanted = {c[0] for c in chosen}
        grid = grid.reshape(shape)
        last = [i for i, (name, whole) in enumerate(names) if name in wanted and whole]
        first = [i for i in range(len(names)) if i not in last]
        members = math.prod(shape[i] for i in last)
        return grid.transpose(first + last).reshape(-1, members), members

    def _axes(self, groups: np.ndarray | None) -> tuple[str, ...]:
        """The smallest set of mesh axes whose groups hold these."""
        if groups is None:
            return (OTHER,)
        positions = np.unravel_index(groups, list(self.mesh.values()))
        moved = tuple(
            axis
            for axis, position in zip(self.mesh, positions, strict=True)
            if np.any(position != position[:, :1])
        )
        return moved or (OTHER,)


def _lines(text: str) -> Iterator[str]:
    """The lines of a program, one an instruction: what a Pallas kernel says of itself is printed
    over several.
    """
    begun = ""
    for line in text.splitlines():
        begun += line
        if begun.endswith("kernel_metadata={") or (begun != line and not line.startswith("}")):
            continue
        yield begun
        begun = ""


def involuntary(stderr: str) -> list[str]:
    """The partitioner's warnings that it copies a whole array to every device."""
    lines = stderr.splitlines()
    return [line for line in lines if "nvoluntary full rematerialization" in line]
