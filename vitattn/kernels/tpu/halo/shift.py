"""Rows of a matrix in registers moved by a number of its own for each lane.

Letters: R rows, L lanes.

The relative term of a query and a key stands in the table's row key - query + b - 1. So what the
table gives a query moves up by b - 1 - query: a barrel shifter, a select for each bit. Rows lie
eight to a register, so moves of fewer rows are rotations of single registers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_ROWS = 8


def _tiles(x: jax.Array) -> list[jax.Array]:
    return [x[at : at + _ROWS] for at in range(0, x.shape[0], _ROWS)]


def _bit(shifts: jax.Array, bit: int) -> jax.Array:
    return (shifts >> bit) & 1 == 1


def _moved(tiles: list[jax.Array], rows: int) -> list[jax.Array]:
    """All rows `rows` further up, or down if negative; zeros come in."""
    from jax.experimental.pallas import tpu as pltpu

    zero = jnp.zeros_like(tiles[0])
    whole, part = divmod(abs(rows), _ROWS)
    blank = [zero] * min(whole, len(tiles))
    tiles = tiles[whole:] + blank if rows > 0 else blank + tiles[: len(tiles) - len(blank)]
    if part == 0:
        return tiles
    row = jax.lax.broadcasted_iota(jnp.int32, zero.shape, 0)
    turn = _ROWS - part if rows > 0 else part
    turned = [pltpu.roll(tile, turn, 0) for tile in tiles]
    beside = [*turned[1:], zero] if rows > 0 else [zero, *turned[:-1]]
    first, second = (turned, beside) if rows > 0 else (beside, turned)
    return [jnp.where(row < turn, x, y) for x, y in zip(first, second, strict=True)]


def _sized(tiles: list[jax.Array], rows: int) -> list[jax.Array]:
    more = [jnp.zeros_like(tiles[0])] * (rows // _ROWS - len(tiles))
    return (tiles + more)[: rows // _ROWS]


def _needed(size: int) -> int:
    return -(-size // _ROWS)


def move_up(x: jax.Array, shifts: jax.Array, most: int, rows: int) -> jax.Array:
    """out[r, l] = x[r + shifts[., l], l], zero where x has no such row.

    Args:
      x: f32 [R, L].
      shifts: i32 [8, L], rows alike, from 0 to `most`.
      most: the largest shift.
      rows: of the result, a multiple of 8.
    """
    tiles = _tiles(x)
    for bit in reversed(range(most.bit_length())):
        # What smaller moves still need of the rows below.
        keep = min(len(tiles), _needed(rows + (1 << bit) - 1))
        moved = _moved(tiles[: keep + 1 + (1 << bit) // _ROWS], 1 << bit)
        mask = _bit(shifts, bit)
        tiles = [jnp.where(mask, *pair) for pair in zip(moved[:keep], tiles[:keep], strict=True)]
    return jnp.concatenate(_sized(tiles, rows), 0)


def move_down(x: jax.Array, shifts: jax.Array, most: int, rows: int) -> jax.Array:
    """The transpose of `move_up`: out[r + shifts[., l], l] = x[r, l], `rows` of them."""
    tiles = _tiles(x)
    for bit in range(most.bit_length()):
        enough = min(rows // _ROWS, _needed(x.shape[0] + (2 << bit) - 1))
        tiles = _sized(tiles, max(enough, len(tiles)) * _ROWS)
        mask = _bit(shifts, bit)
        moved = _moved(tiles, -(1 << bit))
        tiles = [jnp.where(mask, *pair) for pair in zip(moved, tiles, strict=True)]
    return jnp.concatenate(_sized(tiles, rows), 0)
