"""What a Pallas kernel fetches and multiplies over all steps of its grid, from its own module.

A block is copied when its index is another than in the step before: one that stays is not fetched
again, and a block of a result is written when it is left. Index maps and conditions are evaluated
at every step. Where they read scalars that are prefetched, whose values are known only when the
program runs, a balanced assignment is taken: the blocks in order, each as often as any other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainlib.planning.hlo.layout import HBM, ON_CHIP, Array
from trainlib.planning.kernels.body import Body
from trainlib.planning.kernels.mosaic import Module, Scalars, Unknown, Window, name_of, shape_of

_CHUNK = 2**18  # steps that are evaluated at once
_MOST = 2**24  # steps; a grid of more would take a TPU seconds
_WINDOWED = ("vmem", "smem")


@dataclasses.dataclass
class Work:
    """Of one run of a kernel.

    Attributes:
      steps: of the grid, of all cores together.
      hbm_bytes: blocks between HBM and the kernel, in whole tiles.
      vmem_bytes: the same of arrays that XLA keeps in memory on the chip.
      flops: of its matrix products, multiply-adds count two.
      passes: `flops` as the matrix unit sees them: 6 times for float32 at full precision.
      loops: turns of each loop of the body, see `Body.loops`.
      branches: how often each block under a condition runs, see `Body.branches`.
      notes: what was assumed or left out, a sentence each.
    """

    steps: int = 1
    hbm_bytes: int = 0
    vmem_bytes: int = 0
    flops: float = 0.0
    passes: float = 0.0
    loops: tuple[float | None, ...] = ()
    branches: tuple[float | None, ...] = ()
    notes: tuple[str, ...] = ()


def work(module: Module, operands: Sequence[Array], results: Sequence[Array]) -> Work:
    """Adds up what a kernel does.

    Args:
      module: of the kernel.
      operands: of the custom call, in order: sizes of a dynamic grid, prefetched scalars, inputs.
      results: of the custom call.
    """
    notes: dict[str, None] = {}
    grid = _known(module, notes)
    steps = math.prod(grid)
    if steps > _MOST:
        return Work(steps=steps, notes=(f"A grid of {steps:,} steps is not counted.",))
    scalars = sum(size is None for size in module.grid) + module.prefetched
    arrays = [*operands[scalars:], *results]
    if len(arrays) != len(module.windows):
        notes["Its blocks are not counted: operands were fused into it."] = None
        arrays = []
    blocks = [_Blocks(*pair) for pair in zip(module.windows, arrays, strict=False)]
    body = Body(module, grid, _balanced(module, _named(module, arrays), notes))
    for at in _chunks(grid):
        body.add(at)
        for each in blocks:
            each.add(at, module, notes)
    notes.update(body.notes)
    moved = [(a.space, a.padded_bytes) for a in operands[:scalars]]
    moved += [(each.array.space, each.bytes) for each in blocks]
    return Work(
        steps=steps,
        hbm_bytes=sum(size for space, size in moved if space == HBM),
        vmem_bytes=sum(size for space, size in moved if space in ON_CHIP),
        flops=body.flops,
        passes=body.passes,
        loops=body.loops,
        branches=body.branches,
        notes=tuple(notes),
    )


def _known(module: Module, notes: dict[str, None]) -> tuple[int, ...]:
    """The grid, with bounds for sizes that are known only when the kernel runs: the length of the
    prefetched array that the step is an index into.
    """
    bounds: dict[int, int] = {}
    for window in module.windows:
        for number, index in _loads(window.transform) if window.transform else ():
            arguments = list(_block_of(window.transform).arguments)
            while hasattr(index.owner, "operands") and len(index.owner.operands) == 1:
                index = index.owner.operands[0]
            if index in arguments[: len(module.grid)]:
                axis, length = arguments.index(index), shape_of(arguments[number].type)[0][0]
                bounds[axis] = min(length, bounds.get(axis, length))
    sizes = []
    for axis, size in enumerate(module.grid):
        if size is None:
            size = bounds.get(axis, 1)
            known = (
                "at most, by the length of what it indexes" if axis in bounds else "taken as one"
            )
            notes[f"Dimension {axis} of its grid is dynamic: {size} steps, {known}."] = None
        sizes.append(size)
    return tuple(sizes)


def _chunks(grid: tuple[int, ...]) -> Iterator[tuple[np.ndarray, ...]]:
    """Coordinates of all steps in order, an array a dimension, so many at once."""
    steps = math.prod(grid)
    if not grid:
        yield ()
        return
    for start in range(0, steps, _CHUNK):
        yield np.unravel_index(np.arange(start, min(start + _CHUNK, steps)), grid)


class _Blocks:
    """Counts the bytes of one operand's blocks, chunk of steps by chunk."""

    def __init__(self, window: Window, array: Array):
        self._window, self.array = window, array
        self.bytes = 0
        self._last: np.ndarray | None = None
        self._sizes: dict[tuple[int, ...], int] = {}
        if window.transform is None and window.space in _WINDOWED:
            self.bytes = array.padded_bytes

    def add(self, at: tuple[np.ndarray, ...], module: Module, notes: dict[str, None]) -> None:
        """Adds the blocks of more steps."""
        if self._window.transform is None or self._window.space not in _WINDOWED:
            return
        steps = len(at[0]) if at else 1
        try:
            indices = self._indices(at, steps, module, notes)
        except Unknown as error:
            notes[f"Blocks are taken as fetched in every step: they depend on {error}."] = None
            self.bytes += steps * self._size(self._window.block)
            return
        before = indices[:1] - 1 if self._last is None else self._last
        self._last = indices[-1:]
        moved = np.any(np.diff(indices, axis=0, prepend=before) != 0, axis=1)
        starts = indices[moved]
        if not self._window.by_element:
            starts = starts * np.asarray(self._window.block)
        extents = np.clip(np.asarray(self.array.shape) - starts, 0, self._window.block)
        for extent, count in zip(*np.unique(extents, axis=0, return_counts=True), strict=True):
            self.bytes += int(count) * self._size(tuple(map(int, extent)))

    def _size(self, extent: tuple[int, ...]) -> int:
        if extent not in self._sizes:
            self._sizes[extent] = dataclasses.replace(self.array, shape=extent).padded_bytes
        return self._sizes[extent]

    def _indices(
        self, at: tuple[np.ndarray, ...], steps: int, module: Module, notes: dict[str, None]
    ) -> np.ndarray:
        """[steps, dimensions] of the array."""
        block = _block_of(self._window.transform)
        arguments = dict(zip(block.arguments, at, strict=False))
        columns = []
        for axis, value in enumerate(list(block.operations)[-1].operands):
            blocks = -(-self.array.shape[axis] // self._window.block[axis])
            every = dict.fromkeys(range(len(list(block.arguments))), blocks)
            scalars = Scalars(arguments, _balanced(module, every, notes))
            columns.append(np.broadcast_to(scalars.value(value), (steps,)))
        return np.stack(columns, axis=1) if columns else np.zeros((steps, 0), int)


def _block_of(function: Any) -> Any:
    return function.regions[0].blocks[0]


def _loads(function: Any) -> Iterator[tuple[int, Any]]:
    """(number of the operand, index) of prefetched scalars that an index map reads."""
    block = _block_of(function)
    arguments = list(block.arguments)
    for operation in block.operations:
        if name_of(operation) == "memref.load" and len(operation.operands) == 2:
            yield arguments.index(operation.operands[0]), operation.operands[1]


def _named(module: Module, arrays: Sequence[Array]) -> dict[int, int]:
    """Number of a prefetched operand -> of how many blocks it names one."""
    named: dict[int, int] = {}
    for window, array in zip(module.windows, arrays, strict=False):
        if window.transform is None:
            continue
        returned = list(list(_block_of(window.transform).operations)[-1].operands)
        for axis, value in enumerate(returned):
            blocks = -(-array.shape[axis] // window.block[axis])
            for number, _ in _loads(window.transform):
                if _depends(value, list(_block_of(window.transform).arguments)[number]):
                    named[number] = max(blocks, named.get(number, 1))
    return named


def _depends(value: Any, argument: Any) -> bool:
    if value == argument:
        return True
    return hasattr(value.owner, "operands") and any(
        _depends(operand, argument) for operand in value.owner.operands
    )


def _balanced(module: Module, blocks: dict[int, int], notes: dict[str, None]) -> Any:
    """Values of prefetched scalars: all blocks in order, each as often as any other.

    Args:
      module: of the kernel.
      blocks: number of a prefetched operand -> of how many blocks it names one.
      notes: where it is said that this was assumed.
    """
    first = len(module.grid)

    def load(operand: Any, index: np.ndarray) -> np.ndarray:
        number = next(
            (n for n, a in enumerate(operand.owner.arguments) if a == operand and n >= first), -1
        )
        if number not in blocks:
            raise Unknown("scalars that are read")
        length = max(math.prod(shape_of(operand.type)[0]), 1)
        if length > 1:
            notes["Blocks named by prefetched scalars are taken in order, evenly."] = None
        return np.clip(index, 0, length - 1) * blocks[number] // length

    return load
