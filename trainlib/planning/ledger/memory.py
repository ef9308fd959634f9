"""Bytes that are alive in HBM along the schedule of a program.

Arguments and results are there all along; what is overwritten is counted once. Everything else is
alive from the instruction that makes it to the last that uses it. What a loop or a branch needs for
itself is taken as a plateau: its worst moment, for as long as it runs. The compiler places arrays
into one another more cleverly than this, and leaves gaps between them: its own figure of
temporaries is the one to plan with, this curve says what they are.
"""

from __future__ import annotations

import dataclasses
import re

from trainlib.planning.hlo import Instruction, Program
from trainlib.planning.hlo.layout import HBM, Array

_INDEX = re.compile(r"\bindex=(\d+)")
# Operands that lie where a result does, numbered one after the other, the results last.
_SHARED = re.compile(r'"indices":\[([^\]]*)\]')
_PASSED = re.compile(r"\{(\d+)\}: \((\d+), \{\}(?:, may-alias|, must-alias)?\)")
# Their results are the memory of their first operand; that of a while, of all of it.
_RENAMED = {
    *("bitcast", "while", "copy-done", "slice-done", "optimization-barrier", "opt-barrier"),
    *("async-update", "async-done", "all-gather-done", "all-reduce-done", "dynamic-slice-done"),
    *("collective-permute-done", "add-dependency", "dynamic-update-slice", "scatter"),
    *("dynamic-update-slice-done", "all-to-all-done", "domain"),
}
_PASSING = {"ConcatBitcast", "Sharding", "LayoutConstraint"}


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array in HBM: what makes it, its bytes, and the instructions between which it lives."""

    made_by: str
    bytes: int
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class MemoryOverTime:
    """What is alive while a program runs.

    Attributes:
      instructions: of the entry, in the order of its schedule.
      live: bytes of temporaries while each of them runs.
      arguments: bytes of arguments and of results that do not take their place.
      buffers: temporaries of the entry, in the order in which they are made.
    """

    instructions: tuple[str, ...]
    live: tuple[int, ...]
    arguments: int
    buffers: tuple[Buffer, ...]

    @property
    def peak(self) -> int:
        """Most bytes of temporaries at once."""
        return max(self.live, default=0)

    def at_peak(self, count: int = 10) -> list[Buffer]:
        """The largest temporaries that are alive at the worst moment."""
        if not self.live:
            return []
        moment = self.live.index(self.peak)
        alive = [b for b in self.buffers if b.first <= moment <= b.last]
        return sorted(alive, key=lambda b: -b.bytes)[:count]


def _hbm(array: Array) -> int:
    return array.padded_bytes if array.space == HBM else 0


@dataclasses.dataclass
class _Buffer:
    made_by: str
    bytes: int
    first: int
    last: int
    own: bool  # made here; not an argument, nor a part of one


class _Computation:
    """Follows the arrays of one computation."""

    def __init__(self, program: Program, name: str, peaks: dict[str, int]):
        self._program, self._peaks = program, peaks
        self.lines = program.computations[name]
        self.buffers: list[_Buffer] = []
        self._values: dict[str, list[int]] = {}  # instruction -> the buffers of its leaves
        for position, line in enumerate(self.lines):
            self._values[line.name] = self._made(position, line)
        self._root = next((line for line in self.lines if line.root), None)
        for number in self._values.get(self._root.name, ()) if self._root else ():
            self.buffers[number].last = len(self.lines) - 1

    def results(self) -> list[int]:
        """Buffers of the leaves of its result."""
        return self._values.get(self._root.name, []) if self._root else []

    def live(self) -> list[int]:
        """Bytes that are made here and alive, at each instruction."""
        steps = [0] * (len(self.lines) + 1)
        for buffer in self.buffers:
            if buffer.own:
                steps[buffer.first] += buffer.bytes
                steps[buffer.last + 1] -= buffer.bytes
        found, now = [], 0
        for line, step in zip(self.lines, steps, strict=False):
            now += step
            inner = max((self._peak(c) for c in line.called), default=0) if _steps(line) else 0
            found.append(now + inner)
        return found

    def _peak(self, name: str) -> int:
        """Worst moment of a loop's body, or of a branch, without what it was given."""
        if name not in self._peaks:
            self._peaks[name] = 0
            if name in self._program.computations:
                inner = _Computation(self._program, name, self._peaks)
                given = {number for number in inner.results() if inner.buffers[number].own}
                # The next state of a loop takes the place of the last.
                for number in given:
                    inner.buffers[number].own = False
                self._peaks[name] = max(inner.live(), default=0)
        return self._peaks[name]

    def _new(self, line: Instruction, array: Array, position: int, own: bool = True) -> int:
        self.buffers.append(_Buffer(line.name, _hbm(array), position, position, own))
        return len(self.buffers) - 1

    def _made(self, position: int, line: Instruction) -> list[int]:
        operands = [self._values.get(name, []) for name in line.operands]
        for leaves in operands:
            for number in leaves:
                self.buffers[number].last = max(self.buffers[number].last, position)
        opcode = line.opcode
        if opcode == "parameter":
            return [self._new(line, array, position, own=False) for array in line.arrays]
        if opcode == "tuple":
            return [number for leaves in operands for number in leaves]
        if opcode == "get-tuple-element":
            return self._element(line, operands)
        if opcode in _RENAMED or line.custom_call_target in _PASSING:
            return (operands[0] if operands else [])[: len(line.arrays)]
        if opcode.endswith("-start"):
            return self._started(position, line, [n for leaves in operands for n in leaves])
        return self._results(position, line, operands)

    def _started(self, position: int, line: Instruction, given: list[int]) -> list[int]:
        """Results of an asynchronous operation, which its end takes, and then what it was given."""
        arrays = line.arrays
        if line.opcode == "copy-start":
            arrays = arrays[:1]
        elif len(arrays) > len(given):
            arrays = arrays[len(given) :]
        return [*(self._new(line, array, position) for array in arrays), *given]

    def _element(self, line: Instruction, operands: list[list[int]]) -> list[int]:
        index = _INDEX.search(line.rest)
        leaves = operands[0] if operands else []
        if index is None or len(line.arrays) != 1:
            return leaves
        at = int(index[1])
        return leaves[at : at + 1]

    def _results(self, position: int, line: Instruction, operands: list[list[int]]) -> list[int]:
        """New arrays, but for those that take the place of an operand that ends here."""
        shared = {}
        for listed in _SHARED.findall(line.rest):
            first, *_, last = re.findall(r"\d+", listed)
            at = int(last) - len(line.operands)
            if at >= 0 and int(first) < len(operands):
                shared[at] = operands[int(first)]
        for result, operand in _PASSED.findall(line.rest):
            shared[int(result)] = operands[int(operand)] if int(operand) < len(operands) else []
        made = []
        for index, array in enumerate(line.arrays):
            leaves = shared.get(index, [])
            if len(leaves) == 1 and self.buffers[leaves[0]].bytes == _hbm(array):
                made.append(leaves[0])
            else:
                made.append(self._new(line, array, position))
        return made


def _steps(line: Instruction) -> bool:
    return line.opcode in ("while", "conditional", "call")


def over_time(program: Program) -> MemoryOverTime:
    """What is alive in HBM while each instruction of the entry runs."""
    entry = _Computation(program, program.entry, {})
    arguments = sum(b.bytes for b in entry.buffers if not b.own)
    for index, number in enumerate(entry.results()):
        buffer = entry.buffers[number]
        if buffer.own:
            # A result is no temporary; where it takes an argument's place it is counted there.
            buffer.own = False
            arguments += buffer.bytes * (index not in program.donated)
    kept = [b for b in entry.buffers if b.own and b.bytes]
    return MemoryOverTime(
        instructions=tuple(line.name for line in entry.lines),
        live=tuple(entry.live()),
        arguments=arguments,
        buffers=tuple(Buffer(b.made_by, b.bytes, b.first, b.last) for b in kept),
    )
