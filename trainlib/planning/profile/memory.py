"""Which arrays are alive when: the memory of a step over its time.

Read from the schedule of the compiled program: an array in HBM is alive from the instruction that
makes it to the last that reads it. Names for parts of others (tuples, bitcasts, the ends of
copies) and what is updated in place make none. A loop adds the most that its body holds while it
runs. Arguments, and results that take their places, are alive throughout and not counted.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from functools import cached_property

from trainlib.planning.hlo import Instruction, Program
from trainlib.planning.hlo.layout import HBM
from trainlib.planning.ledger import Ledger

# Results that are other names for operands, or lie where an operand does.
_ALIASES = {
    *("tuple", "get-tuple-element", "bitcast", "parameter", "opt-barrier", "optimization-barrier"),
    *("while", "dynamic-update-slice", "add-dependency", "after-all", "copy-done", "slice-done"),
    *("async-done", "async-update", "all-gather-done", "all-reduce-done", "conditional", "call"),
    *("collective-permute-done", "dynamic-update-slice-done", "scatter", "constant"),
}
_STEPPED = ("while", "conditional", "call")


def _shape(line: Instruction) -> str:
    """The largest array of a result: bf16[64,112,112,64]."""
    largest = max(line.arrays, key=lambda array: array.padded_bytes, default=None)
    return f"{largest.kind}{list(largest.shape)}".replace(" ", "") if largest else ""


@dataclasses.dataclass(frozen=True)
class Alive:
    """An array while it is alive.

    Attributes:
      name: of the instruction that makes it.
      bytes: with the padding of its tiles.
      start: seconds from the beginning of the step.
      end: of the last instruction that reads it.
      layer: that makes it.
      what: its type and shape, as HLO writes them.
    """

    name: str
    bytes: int
    start: float
    end: float
    layer: str
    what: str


class Memory:
    """The arrays of a scheduled program.

    Args:
      ledger: with a schedule.
    """

    def __init__(self, ledger: Ledger):
        self._program: Program = ledger.program
        self._operations = {one.name: one for one in ledger.operations}
        self._spans = {
            span.name: (span.start, span.end)
            for span in ledger.schedule.spans
            if span.lane == "core"
        }
        self._bodies: dict[str, float] = {}  # computation -> when its last operation ends
        for one in ledger.operations:
            end = self._spans.get(one.name, (0.0, 0.0))[1]
            self._bodies[one.computation] = max(end, self._bodies.get(one.computation, 0.0))
        self._end = ledger.schedule.seconds
        self._inner: dict[str, int] = {}

    @cached_property
    def alive(self) -> list[Alive]:
        """Every array of the entry, in the order in which they are made."""
        lines = self._program.computations[self._program.entry]
        clock = self._clock(lines)
        found = []
        for line, first, last, count in self._lives(lines):
            operation = self._operations.get(line.name)
            found.append(
                Alive(
                    name=line.name,
                    bytes=count,
                    start=clock[first],
                    end=clock[last + 1],
                    layer=operation.layer if operation else "",
                    what=_shape(line),
                )
            )
        return found

    @cached_property
    def curve(self) -> list[tuple[float, int]]:
        """(seconds, bytes from then on) at every change."""
        changes: dict[float, int] = defaultdict(int)
        for one in self.alive:
            changes[one.start] += one.bytes
            changes[one.end] -= one.bytes
        held, points = 0, []
        for moment in sorted(changes):
            held += changes[moment]
            points.append((moment, held))
        return points

    @cached_property
    def peak(self) -> tuple[float, int]:
        """When most is alive, and how many bytes."""
        return max(self.curve, key=lambda point: point[1], default=(0.0, 0))

    def at(self, moment: float) -> list[Alive]:
        """What is alive at a moment, the largest first."""
        found = [one for one in self.alive if one.start <= moment < one.end]
        return sorted(found, key=lambda one: -one.bytes)

    # ------------------------------------------------------------------ one computation
    def _clock(self, lines: list[Instruction]) -> list[float]:
        """When each line begins, and last the end of the step."""
        starts, now = [], 0.0
        for line in lines:
            start, end = self._spans.get(line.name, (now, now))
            starts.append(max(now, start))
            now = max(now, end, self._last_of(line))
        return [*starts, self._end]

    def _last_of(self, line: Instruction) -> float:
        """When a loop, branch or call ends; 0 for other lines."""
        if line.opcode not in _STEPPED:
            return 0.0
        found, waiting = 0.0, list(line.called)
        for name in waiting:
            found = max(found, self._bodies.get(name, 0.0))
            for inner in self._program.computations.get(name, ()):
                if inner.opcode in _STEPPED:
                    waiting += inner.called
        return found

    def _lives(self, lines: list[Instruction]) -> list[tuple[Instruction, int, int, int]]:
        """(line, first, last, bytes): numbers of the lines between which its result is alive."""
        owner: dict[str, tuple[str, ...]] = {}  # a name -> the arrays that it stands for
        last: dict[str, int] = {}
        made: dict[str, tuple[Instruction, int, int]] = {}
        kept: set[str] = set()
        for number, line in enumerate(lines):
            read = [name for operand in line.operands for name in owner.get(operand, ())]
            for name in read:
                last[name] = number
            if line.root:
                kept |= set(read)
            own = () if line.opcode in _ALIASES else self._bytes(line)
            if own:
                made[line.name], last[line.name] = (line, number, sum(own)), number
            held = read if line.opcode in _ALIASES or line.opcode.endswith("-start") else []
            owner[line.name] = (*dict.fromkeys(held), *([line.name] if own else []))
            if line.opcode in _STEPPED and (inner := self._inside(line)):
                name = f"{line.name} (inside)"
                made[name], last[name] = (line, number, inner), number
        return [
            (line, first, last[name], count)
            for name, (line, first, count) in made.items()
            if name not in kept
        ]

    @staticmethod
    def _bytes(line: Instruction) -> list[int]:
        arrays = line.arrays
        if line.opcode.endswith("-start"):  # (operands, results, flags), or the result first
            arrays = arrays[:1] if line.opcode == "copy-start" else arrays[1:2]
        return [array.padded_bytes for array in arrays if array.space == HBM]

    def _inside(self, line: Instruction) -> int:
        """The most that the computations of a loop, branch or call hold at once."""
        names = [name for name in line.called if name in self._program.computations]
        return max((self._peak_of(name) for name in names), default=0)

    def _peak_of(self, computation: str) -> int:
        if computation not in self._inner:
            changes: dict[int, int] = defaultdict(int)
            for _, first, last, count in self._lives(self._program.computations[computation]):
                changes[first] += count
                changes[last + 1] -= count
            held = most = 0
            for number in sorted(changes):
                held += changes[number]
                most = max(most, held)
            self._inner[computation] = most
        return self._inner[computation]
