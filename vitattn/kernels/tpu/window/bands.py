"""Bands of rows: what a step of the kernels of windowed attention has, and whether it fits.

Dimension letters: T tiles, n bands, H rows of a map, h rows of a band, c channels, K window, R = K
// 2, S sublanes, L lanes.

A map whose rows fit into the memory of the core is one band of H rows. Otherwise the grid has a
step for each band, and what a band needs of its neighbours is read with it:

    forward    h rows of queries, and the keys and values R rows further on both sides
    backward   h rows of keys, and the queries R rows further, so that gradients of keys and values
               are complete in one step; those of 2R rows of queries go on in the next

Blocks that would begin before the map or end behind it are moved inside.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from trainlib.sharding.kernels import core_memory
from vitattn.kernels.tpu.window.rows import Chunks, Sizes

Array = jax.Array

_SHARE = 0.85  # of the memory of the core, for a kernel: the rest is for the program around it
_PADDED = 8  # rows whose time it costs to fill up the last band


def banded(sizes: Sizes, item: int, *, backward: bool) -> Sizes | None:
    """Sizes with the bands that take the least time of those that fit; None where none do.

    Args:
      sizes: of the call.
      item: bytes of a number of q.
      backward: of the backward kernel, which takes more memory.
    """
    height, reach = sizes.packing.height, sizes.reach
    found = []
    for bands in range(1, max(1, height // max(1, 2 * reach)) + 1):
        one = dataclasses.replace(sizes, bands=bands)
        if _memory(one, item, backward) <= 0.9 * _SHARE * core_memory():
            repeated = 2 * reach * (bands - 1) + (_PADDED if height % bands else 0)
            found.append((bands * one.band + repeated, bands, one))
    return min(found, key=lambda one: one[:2])[2] if found else None


def _memory(sizes: Sizes, item: int, backward: bool) -> int:
    """Bytes that a kernel keeps of a band."""
    window, rows, band = sizes.window, sizes.rows, sizes.band
    depth, values = Chunks.of(sizes.depth).total, Chunks.of(sizes.values).total
    tables = window * sizes.depth * sizes.position
    both = sizes.depth + sizes.values
    if backward:
        kept = rows * (2 * depth + values + window**2 + 2 * window + 1)
        kept += window * (2 * depth + values + window) + 4 * tables
        # Queries, results and cotangents; keys, values, their gradients and those of queries.
        blocks = (rows * (both + sizes.values) + band * (2 * both + sizes.depth)) * item + 4 * rows
    else:
        more = sizes.bands > 1
        kept = (rows + 2 * sizes.reach * more) * (window**2 + depth + values)
        kept += window * (depth + values) + band + 2 * tables
        blocks = (band + rows) * both * item + 4 * band
    # Blocks are fetched and written while others are computed on.
    return math.prod(sizes.register) * (2 * blocks + 4 * kept)


@dataclasses.dataclass(frozen=True)
class Step:
    """Where a step of a kernel stands in the map; to be made once, before any loop.

    Attributes:
      sizes: of the call.
    """

    sizes: Sizes

    def __post_init__(self) -> None:
        from jax.experimental import pallas as pl

        number = 0 if self.sizes.bands == 1 else pl.program_id(1)
        object.__setattr__(self, "number", number)

    number: Any = dataclasses.field(init=False)

    @property
    def origin(self) -> Any:
        """The row of the map that the band begins with."""
        return self.number * self.sizes.band

    @property
    def is_first(self) -> Any:
        return self.number == 0

    @property
    def is_last(self) -> Any:
        return self.number == self.sizes.bands - 1

    @property
    def wide_origin(self) -> Any:
        """The row of the map that a block of `Blocks.wide` begins with."""
        return _wide_origin(self.sizes, self.number)


def _wide_origin(sizes: Sizes, number: Any) -> Any:
    if sizes.bands == 1:
        return 0
    return jnp.clip(number * sizes.band - sizes.reach, 0, sizes.bands * sizes.band - sizes.rows)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """What a call of a kernel says of its operands; a step of its grid is a band of a tile."""

    sizes: Sizes

    @property
    def grid(self) -> tuple[int, int]:
        return self.sizes.packing.tiles, self.sizes.bands

    def band(self, maps: Any) -> Any:
        """A band of [T, n h, c, S, L], or of numbers of queries [T, n h, S, L]."""
        from jax.experimental import pallas as pl

        size = (1, self.sizes.band, *maps.shape[2:])
        zeros = (0,) * (len(size) - 2)
        return pl.BlockSpec(size, lambda t, n: (t, n, *zeros))

    def wide(self, maps: Any) -> Any:
        """A band of the same and R rows more on both sides, as far as there are any."""
        from jax.experimental import pallas as pl

        sizes = self.sizes
        if sizes.bands == 1:
            return self.band(maps)
        size = tuple(pl.Element(n) for n in (1, sizes.rows, *maps.shape[2:]))
        zeros = (0,) * (len(size) - 2)
        return pl.BlockSpec(size, lambda t, n: (t, _wide_origin(sizes, n), *zeros))

    def statistics(self) -> jax.ShapeDtypeStruct:
        """float32 [T, n h, S, L]."""
        sizes = self.sizes
        rows = sizes.bands * sizes.band
        return jax.ShapeDtypeStruct((sizes.packing.tiles, rows, *sizes.register), jnp.float32)

    def whole(self, table: Any) -> Any:
        """All of a table [K, c, S, L] in every step."""
        from jax.experimental import pallas as pl

        return pl.BlockSpec(table.shape, lambda t, n: (0, 0, 0, 0))

    def scratch(self, *shape: int, dtype: Any = jnp.float32) -> Any:
        """[*shape, S, L] in the memory of the kernel."""
        from jax.experimental.pallas import tpu as pltpu

        return pltpu.VMEM((*shape, *self.sizes.register), dtype)

    def parameters(self, *, in_order: bool) -> Any:
        """`in_order`: steps of the grid add to the same results."""
        from jax.experimental.pallas import tpu as pltpu

        order = "arbitrary" if in_order else "parallel"
        return pltpu.CompilerParams(
            dimension_semantics=(order, order), vmem_limit_bytes=int(_SHARE * core_memory())
        )


def filled_up(x: Array, sizes: Sizes) -> Array:
    """[T, H, ..] -> [T, n h, ..], zeros behind the map."""
    missing = sizes.bands * sizes.band - x.shape[1]
    return jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2))) if missing else x
