"""Bytes that an instruction of an optimised HLO moves, by memory, in whole tiles.

An instruction reads its operands and writes its result, each once: what the compiler's own cost
analysis takes too. Less is moved where only a part is read: a slice, also of a parameter of a
fusion, reads the slice; a gather reads rows; an update in place writes the update. What renames
memory moves nothing. Of an asynchronous pair, all is moved by the start.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable

from trainlib.planning.hlo import KINDS as COLLECTIVES
from trainlib.planning.hlo import Instruction, Program
from trainlib.planning.hlo.layout import HBM, ON_CHIP, Array

# Names for memory, loops (whose bodies count), and the ends of pairs, whose starts count.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *(
        "add-dependency",
        "opt-barrier",
        "optimization-barrier",
        "partition-id",
        "replica-id",
        "domain",
    ),
    *("while", "conditional", "call", "get-dimension-size"),
    *("copy-done", "slice-done", "async-done", "async-update", "all-gather-done"),
    *("all-reduce-done", "collective-permute-done", "send-done", "recv-done"),
    *("dynamic-slice-done", "dynamic-update-slice-done", "all-to-all-done"),
}
# Custom calls that only give memory another name, or tell the compiler what holds.
FREE_CALLS = {
    *("ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "Sharding"),
    *("SPMDFullToShardShape", "SPMDShardToFullShape", "AllocateBuffer", "AsyncCollectiveStart"),
    *("AsyncCollectiveDone", "LayoutConstraint", "annotate_device_placement"),
}
_SLICE_SIZES = re.compile(r"slice_sizes=\{([\d,]*)\}")
_SLICES = ("slice", "dynamic-slice", "gather")
_SAME = ("bitcast",)  # inside a fusion


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes through HBM and through memory on the chip, of one run."""

    hbm: int = 0
    vmem: int = 0


def total(parts: Iterable[tuple[int, int]]) -> Traffic:
    """Adds up (memory space, bytes)."""
    sums: dict[int, int] = defaultdict(int)
    for space, size in parts:
        sums[space] += size
    return Traffic(sums[HBM], sum(sums[space] for space in ON_CHIP))


def _whole(arrays: Iterable[Array]) -> list[tuple[int, int]]:
    return [(array.space, array.padded_bytes) for array in arrays]


def _sliced(line: Instruction, table: Array) -> int:
    """Bytes of a table that a slice or a gather reads: as many as its result takes.

    Rows that are fetched one by one bring along those that are packed with them, in pairs in
    bfloat16: so do the transfers that libtpu 0.0.42 makes of a gather. (Its cost analysis counts
    eight rows for each, whole tiles.)
    """
    size = sum(array.padded_bytes for array in line.arrays)
    sizes = _SLICE_SIZES.search(line.rest) if line.opcode == "gather" else None
    if sizes and len(table.tiles) > 1 and len(table.order) > 1:
        rows = int(sizes[1].split(",")[table.order[1]])
        return size * table.tiles[-1][0] if rows == 1 else size
    return size


def _goes_on(line: Instruction) -> bool:
    """Whether it stands for a collective that another fusion has started and this one overlaps
    with, or for its end: all is moved by the start.
    """
    chained = line.opcode in COLLECTIVES and "chain_id=" in line.rest
    return chained or line.custom_call_target == "AsyncCollectiveDone"


class Movement:
    """Finds the traffic of a program's instructions."""

    def __init__(self, program: Program):
        self._program = program
        self._users: dict[str, dict[str, list[Instruction]]] = {}

    def traffic(self, line: Instruction, computation: str) -> Traffic:
        """Of one run of an instruction."""
        if line.opcode in FREE or line.custom_call_target in FREE_CALLS:
            return Traffic()
        lines = self._program.by_name[computation]
        operands = [lines[name].arrays if name in lines else () for name in line.operands]
        return total(self._parts(line, operands))

    def _parts(self, line: Instruction, operands: list[tuple[Array, ...]]) -> list[tuple[int, int]]:
        opcode = line.opcode.removesuffix("-start")
        if opcode == "fusion":
            return self._fusion(line, operands)
        if line.opcode.endswith("-start"):
            return self._start(line, operands)
        if opcode in ("dynamic-update-slice", "scatter"):
            return self._update(opcode, operands)
        written = _whole(line.arrays)
        if opcode in _SLICES and operands and operands[0]:
            rest = [part for arrays in operands[1:] for part in _whole(arrays)]
            return [*written, (operands[0][0].space, _sliced(line, operands[0][0])), *rest]
        return [*written, *(part for arrays in operands for part in _whole(arrays))]

    def _start(self, line: Instruction, operands: list[tuple[Array, ...]]) -> list[tuple[int, int]]:
        """The result of a start holds its operands, its results and flags."""
        opcode = line.opcode.removesuffix("-start")
        if opcode == "async":
            return []  # its computation runs as any other
        if not operands or not operands[0]:
            return []
        source = operands[0][0]
        if opcode == "copy":
            target = line.arrays[0]
        elif opcode in ("slice", "dynamic-slice"):
            target = next((a for a in line.arrays[1:] if a.kind == source.kind), source)
        elif opcode == "dynamic-update-slice":
            return self._update(opcode, operands)
        else:
            # A collective: an all-reduce holds its results alone.
            given = [array for arrays in operands for array in arrays]
            made = line.arrays[len(given) : 2 * len(given)] or line.arrays
            return [*_whole(given), *_whole(made)]
        return [(source.space, target.padded_bytes), (target.space, target.padded_bytes)]

    @staticmethod
    def _update(opcode: str, operands: list[tuple[Array, ...]]) -> list[tuple[int, int]]:
        """Writes the update into the first operand; a scatter reads its rows first."""
        index = 1 if opcode == "dynamic-update-slice" else 2
        if len(operands) <= index or not operands[0] or not operands[index]:
            return []
        space, update = operands[0][0].space, operands[index][0]
        parts = [(update.space, update.padded_bytes), (space, update.padded_bytes)]
        if opcode == "scatter":
            parts += [(space, update.padded_bytes), *_whole(operands[1])]
        return parts

    # ------------------------------------------------------------------ fusions
    def _fusion(
        self, line: Instruction, operands: list[tuple[Array, ...]]
    ) -> list[tuple[int, int]]:
        body = next((c for c in line.called if c in self._program.computations), None)
        if body is None:
            return [*_whole(line.arrays), *(p for arrays in operands for p in _whole(arrays))]
        if self._starts_collective(body):
            # Its result holds the operands again, then what is gathered, then flags.
            given = [array for arrays in operands for array in arrays]
            made = line.arrays[len(given) : 2 * len(given)]
            return [*_whole(given), *_whole(made)]
        parts = self._written(body, line.arrays)
        for number, arrays in enumerate(operands):
            sizes = self._read(body, number)
            if sizes is None or len(arrays) != 1:
                parts += _whole(arrays)
            else:
                parts.append((arrays[0].space, sizes))
        return parts

    def _starts_collective(self, body: str) -> bool:
        root = next((line for line in self._program.computations[body] if line.root), None)
        return root is not None and root.custom_call_target == "AsyncCollectiveStart"

    def _parameter(self, body: str, number: int) -> Instruction | None:
        wanted = f"{number})"
        for line in self._program.computations[body]:
            if line.opcode == "parameter" and line.rest.startswith(wanted):
                return line
        return None

    def _users_in(self, body: str) -> dict[str, list[Instruction]]:
        if body not in self._users:
            users: dict[str, list[Instruction]] = defaultdict(list)
            for line in self._program.computations[body]:
                for name in line.operands:
                    users[name].append(line)
            self._users[body] = users
        return self._users[body]

    def _read(self, body: str, number: int) -> int | None:
        """Bytes of a parameter that a fusion reads; None where it is all of it."""
        parameter = self._parameter(body, number)
        return 0 if parameter is None else self._used(body, parameter)

    def _used(self, body: str, line: Instruction) -> int | None:
        """Bytes of a value that its users read; None where one of them reads all."""
        if line.root and not _goes_on(line):
            return None
        read = 0
        for user in self._users_in(body)[line.name]:
            first = bool(user.operands) and user.operands[0] == line.name
            alone = user.operands.count(line.name) == 1
            if user.opcode in _SAME:
                part = self._used(body, user)
            elif (user.opcode == "tuple" and line.opcode == "parameter") or _goes_on(user):
                part = 0  # It only passes through.
            elif user.opcode in _SLICES and first and alone:
                part = _sliced(user, line.arrays[0])
            elif user.opcode == "dynamic-update-slice" and first and alone:
                part = 0 if self._in_place(body, user) else None
            elif user.opcode == "scatter" and first and alone:
                part = self._size(body, user.operands[2]) if self._in_place(body, user) else None
            elif user.opcode == "fusion":
                inner = user.called[0]
                at = [i for i, name in enumerate(user.operands) if name == line.name]
                parts = [self._read(inner, i) for i in at]
                part = None if None in parts else sum(p or 0 for p in parts)
            else:
                part = None
            if part is None:
                return None
            read += part
        return read

    def _size(self, body: str, name: str) -> int:
        line = self._program.by_name[body].get(name)
        return sum(array.padded_bytes for array in line.arrays) if line else 0

    def _outputs(self, body: str) -> list[Instruction | None]:
        """What makes each result of a fusion, renamings left out."""
        lines = self._program.by_name[body]
        root = next((line for line in lines.values() if line.root), None)
        if root is None:
            return []
        if root.opcode == "tuple":
            return [self._origin(lines, lines.get(name)) for name in root.operands]
        return [self._origin(lines, root)]

    @staticmethod
    def _origin(lines: dict[str, Instruction], line: Instruction | None) -> Instruction | None:
        while line is not None and line.opcode in _SAME and line.operands:
            line = lines.get(line.operands[0])
        return line

    def _in_place(self, body: str, update: Instruction) -> bool:
        return any(made is update for made in self._outputs(body))

    def _written(self, body: str, arrays: tuple[Array, ...]) -> list[tuple[int, int]]:
        made = self._outputs(body)
        if len(made) != len(arrays):
            return _whole(arrays)
        parts = []
        for line, array in zip(made, arrays, strict=True):
            size = array.padded_bytes
            if line is not None and (line.opcode == "parameter" or _goes_on(line)):
                size = 0  # It lies there already.
            elif line is not None and line.opcode in ("dynamic-update-slice", "scatter"):
                index = 1 if line.opcode == "dynamic-update-slice" else 2
                size = self._size(body, line.operands[index])
            parts.append((array.space, size))
        return parts
