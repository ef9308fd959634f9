"""Tiles of the grouped matrix products on TPUs, chosen by chip and shape.

Letters: E experts, R rows (slots of all experts), K and N the depth and the columns of a product.

    forward  [R, K] x [E, K, N] -> [R, N]      inputs  [R, N] x [E, K, N]^T -> [R, K]
    weights  [R, K]^T x [R, N] -> [E, K, N]

The kernels of JAX (megablox) walk over a grid of tiles (rows, depth, columns): the first two over
columns, visits of row tiles, depth; the third over columns, depth, visits. A row tile in which one
expert ends and another begins is visited by both. A block is fetched when it is another than in
the step before, so the depth in one piece lets the weights of an expert stay while its rows pass.
What a tiling can reach at most, its ceiling, is the time of the useful products at the chip's peak
over the larger of the products with whole tiles at the peak, and the bytes of the blocks at the
bandwidth. Of the tilings within VMEM that with the highest ceiling is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

from trainlib.chips import CHIPS, Chip

LANES = 128
ROWS = (128, 256, 512, 1024, 2048)  # of a tile
MIB = 2**20
# Bytes of VMEM that XLA lets a kernel hold by default (libtpu 0.0.42; compiled for each chip).
VMEM = {"v4": 16 * MIB, "v5e": 16 * MIB, "v5p": 16 * MIB, "v6e": 32 * MIB, "tpu7x": 32 * MIB}
# What the compiler adds to the blocks, beside a copy of the rows: registers that it spills.
_SPARE = 2 * MIB
# Ceilings that differ by less are taken as equal; then long runs of the inner loops decide.
_EQUAL = 0.005
DEFAULT = "v5e"  # where a program does not say what chip it is for: the least memory of all
PRODUCTS = ("forward", "inputs", "weights")

Tiling = tuple[int, int, int]  # rows, depth, columns


@dataclasses.dataclass(frozen=True)
class Shape:
    """One grouped product, R rows of E experts by K and N.

    Attributes:
      rows: R, a multiple of `LANES`.
      depth: K, columns of the left operand; of "weights", rows of the result.
      columns: N.
      experts: E.
      itemsize: bytes of an element of operands and result.
    """

    rows: int
    depth: int
    columns: int
    experts: int
    itemsize: int = 2

    @property
    def flops(self) -> float:
        """Useful ones; multiply-adds count two."""
        return 2.0 * self.rows * self.depth * self.columns


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a product takes with one tiling.

    Attributes:
      flops: of all visits, in whole tiles.
      bytes: of the blocks fetched and written, in whole tiles of memory.
      vmem: bytes that its blocks hold, all but the sums twice.
      turns: of inner loops, for each useful element: the fewer, the longer each runs.
    """

    flops: float
    bytes: float
    vmem: float
    turns: float

    def ceiling(self, shape: Shape, chip: Chip) -> float:
        """The share of the chip's peak that the useful products can reach."""
        seconds = max(self.flops / chip.flops, self.bytes / chip.hbm_bandwidth)
        return min(1.0, shape.flops / chip.flops / seconds)


def cost(product: str, shape: Shape, tiling: Tiling) -> Cost:
    """Of one of `PRODUCTS`; sides of `tiling` divide those of `shape`."""
    rows, depth, columns = tiling
    over_depth, over_columns = shape.depth // depth, shape.columns // columns
    # Every expert but the first begins inside a tile, as a rule.
    visits = shape.rows // rows + shape.experts - 1
    wide, deep = (-(-side // LANES) * LANES for side in (columns, depth))
    whole_depth, whole_columns = over_depth * deep, over_columns * wide
    left, weights, right = rows * deep, depth * wide, rows * wide
    every = visits * rows  # rows that are multiplied
    if product == "weights":
        moved = over_columns * shape.rows * whole_depth + over_depth * shape.rows * whole_columns
        moved += shape.experts * shape.depth * whole_columns
        # The rows are transposed in float32.
        sums, copy, turns = weights, 4 * left, 1 / rows + 1 / columns
    else:
        # With the depth in one piece, neither the rows of a tile that is visited again nor the
        # weights of an expert that goes on are fetched again.
        once = over_depth == 1
        moved = over_columns * (shape.rows if once else every) * whole_depth
        moved += (shape.experts if once else visits) * shape.depth * whole_columns
        moved += shape.rows * whole_columns
        sums, copy, turns = right, shape.itemsize * left, 1 / rows + 1 / depth
    blocks = 2 * shape.itemsize * (left + weights + right) + 4 * sums + copy
    return Cost(
        flops=2.0 * every * shape.depth * shape.columns,
        bytes=float(shape.itemsize * moved),
        vmem=float(blocks + _SPARE),
        turns=turns,
    )


def _sides(size: int) -> list[int]:
    """Tiles of one side: multiples of the lanes that divide it, else the whole side."""
    parts = [n for n in range(LANES, size + 1, LANES) if size % n == 0]
    return parts or [size]


def _tilings(shape: Shape) -> Iterator[Tiling]:
    rows = [n for n in ROWS if shape.rows % n == 0] or [shape.rows]
    for depth in _sides(shape.depth):
        for columns in _sides(shape.columns):
            yield from ((n, depth, columns) for n in rows)


@functools.lru_cache(maxsize=2**10)
def tiling(product: str, shape: Shape, chip_name: str) -> Tiling:
    """The best tiling within the chip's VMEM.

    Args:
      product: one of `PRODUCTS`.
      shape: of it.
      chip_name: one of `VMEM`.
    """
    chip = CHIPS[chip_name]
    priced = [(one, cost(product, shape, one)) for one in _tilings(shape)]
    fitting = [pair for pair in priced if pair[1].vmem <= VMEM[chip_name]]
    # Sides that nothing divides may fit in no way: then the smallest, and the compiler decides.
    fitting = fitting or [min(priced, key=lambda pair: pair[1].vmem)]
    best = max(one.ceiling(shape, chip) for _, one in fitting)
    equal = [pair for pair in fitting if pair[1].ceiling(shape, chip) >= best - _EQUAL]
    return min(equal, key=lambda pair: (pair[1].turns, math.prod(pair[0])))[0]


@dataclasses.dataclass(frozen=True)
class Tilings:
    """Of a product and of both of its gradients."""

    forward: Tiling
    inputs: Tiling
    weights: Tiling


def tilings(
    rows: int, depth: int, columns: int, experts: int, itemsize: int, chip_name: str
) -> Tilings:
    """Of [rows, depth] times [experts, depth, columns]; see `Shape` and `tiling`."""
    name = chip_name if chip_name in VMEM else DEFAULT
    shape = Shape(rows, depth, columns, experts, itemsize)
    back = dataclasses.replace(shape, depth=columns, columns=depth)
    return Tilings(
        forward=tiling("forward", shape, name),
        inputs=tiling("inputs", back, name),
        weights=tiling("weights", shape, name),
    )
