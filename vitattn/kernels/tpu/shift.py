"""Rows moved by another number in every lane: a barrel shifter along sublanes, and its transpose.

Letters: R rows, L lanes.

The term of a query for row Y of the map is entry Y-y+H-1 of its products with the table: the same
products for all queries, moved up by H-1-y. Moved by 1, 2, 4, .. rows where the bit of the number
is set, that is log2(H) selections; a gather would be a product with a matrix a query.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.registers import SUBLANES, filled

Array = jax.Array


def tiles_of(x: Array) -> list[Array]:
    """Registers [8, L] of rows."""
    return [x[i : i + SUBLANES] for i in range(0, x.shape[0], SUBLANES)]


def _set(shifts: Array, bit: int) -> Array:
    return (shifts >> bit) & 1 == 1


def _roll(tile: Array, rows: int) -> Array:
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.roll(tile, rows, 0)


def rows_of(tile: Array) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, tile.shape, 0)


def put_rows(x: Array, rows: Mapping[int, Array | float]) -> Array:
    """x with some of its rows replaced."""
    row = rows_of(x)
    for index, value in rows.items():
        x = jnp.where(row == index, value, x)
    return x


def _up(tiles: list[Array], rows: int) -> list[Array]:
    """Rows moved up by less than 8; the last tile wraps around."""
    rolled = [_roll(tile, SUBLANES - rows) for tile in tiles]
    stays = rows_of(tiles[0]) < SUBLANES - rows
    following = rolled[1:] + rolled[:1]
    return [jnp.where(stays, one, other) for one, other in zip(rolled, following, strict=True)]


def _down(tiles: list[Array], rows: int) -> list[Array]:
    """Rows moved down by less than 8; zeros come in above."""
    rolled = [_roll(tile, rows) for tile in tiles]
    comes = rows_of(tiles[0]) < rows
    above = [jnp.zeros_like(rolled[0]), *rolled[:-1]]
    return [jnp.where(comes, other, one) for one, other in zip(rolled, above, strict=True)]


def gather_rows(
    x: Array, shifts: Array, size: int, first: int = 0, most: int | None = None
) -> Array:
    """out[r, l] = x[r + shifts[l], l] for first <= r < first + size.

    Args:
      x: f32 [R, L] with R a multiple of 8 of at least first + size.
      shifts: int32 [8, L], the same in all rows.
      size: rows that are asked for.
      first: where they begin, below 8.
      most: the largest shift; None is size - 1.

    Returns:
      f32 [first + size filled up to 8, L]; other rows, and those that x does not have, hold
      anything of x.
    """
    tiles = tiles_of(x)
    end, most = first + size, size - 1 if most is None else most
    for bit in reversed(range(most.bit_length())):
        rows = 1 << bit
        keep = min(len(tiles), filled(end + rows - 1, SUBLANES) // SUBLANES)
        if rows >= SUBLANES:
            moved = [tiles[(i + rows // SUBLANES) % len(tiles)] for i in range(keep)]
        else:
            moved = _up(tiles[: keep + 1], rows)[:keep]
        chosen = _set(shifts, bit)
        tiles = [jnp.where(chosen, one, other) for one, other in zip(moved, tiles, strict=False)]
    return jnp.concatenate(tiles[: filled(end, SUBLANES) // SUBLANES], 0)


def scatter_rows(
    x: Array, shifts: Array, size: int, total: int, first: int = 0, most: int | None = None
) -> Array:
    """The transpose of `gather_rows`: out[r + shifts[l], l] = x[r, l] for first <= r < first +
    size, else 0.

    Args:
      x: f32 [first + size filled up to 8, L]; 0 in other rows.
      shifts: as there.
      size: rows that are given.
      total: rows of the result, a multiple of 8 of at least first + size; what would lie beyond has
        to be 0.
      first: where they begin.
      most: as there.
    """
    most = size - 1 if most is None else most
    tiles = tiles_of(x)
    zero = jnp.zeros_like(tiles[0])
    for bit in range(most.bit_length()):
        rows = 1 << bit
        need = min(total, filled(first + size + 2 * rows - 1, SUBLANES)) // SUBLANES
        tiles = tiles + [zero] * (need - len(tiles))
        if rows >= SUBLANES:
            moved = [zero] * (rows // SUBLANES) + tiles[: -(rows // SUBLANES)]
        else:
            moved = _down(tiles, rows)
        chosen = _set(shifts, bit)
        tiles = [jnp.where(chosen, one, other) for one, other in zip(moved, tiles, strict=True)]
    return jnp.concatenate(tiles + [zero] * (total // SUBLANES - len(tiles)), 0)
