"""Blocks and squares of a map that lies in VMEM, inside the kernels.

Letters: H W map, C channels of a step (128 or all), R C' rows and columns of blocks, b block, M
keys of a block along an axis.

A map is held as float32 with its halo of zeros, [R b + 2h, .., 128]: there a square may begin at
any row and column, which the packed rows of bfloat16 do not allow. A row of blocks is cut at once,
with columns known while compiling, so that the loop over its blocks reads whole tiles.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.halo.geometry import Geometry
from vitattn.kernels.tpu.registers import LANES


def load(image, padded, geometry: Geometry) -> None:
    """The map [H, W, C] of `image` into `padded`, with zeros around it."""
    first, size, channels = geometry.first_col, geometry.cols.size, image.shape[-1]
    halo = geometry.rows.halo

    def clear(y, _):
        padded[y] = jnp.zeros(padded.shape[1:], jnp.float32)

    def copy(y, _):
        padded[halo + y, first : first + size, :channels] = image[y].astype(jnp.float32)

    jax.lax.fori_loop(0, padded.shape[0], clear, None)
    jax.lax.fori_loop(0, geometry.rows.size, copy, None)


def store(padded, image, geometry: Geometry) -> None:
    """The map in the middle of `padded` into `image`."""
    first, size, channels = geometry.first_col, geometry.cols.size, image.shape[-1]
    halo = geometry.rows.halo

    def copy(y, _):
        image[y] = padded[halo + y, first : first + size, :channels].astype(image.dtype)

    jax.lax.fori_loop(0, geometry.rows.size, copy, None)


def _zero_beyond(x: jax.Array, cols: int) -> jax.Array:
    """Columns of [rows, columns, 128] that are not of the block: other pixels, with any values."""
    if cols == x.shape[1]:
        return x
    col = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where(col < cols, x, 0)


def _clear_rest(cut, geometry: Geometry) -> None:
    """Zeros in blocks that only fill a turn: the tables' gradients add them up."""
    for j in range(geometry.cols.blocks, geometry.computed):
        cut[j] = jnp.zeros(cut.shape[1:], cut.dtype)


def cut_squares(padded, squares, row, geometry: Geometry) -> None:
    """Keys of the blocks of block row `row` -> [C', keys, 128], in the type of `squares`."""
    from jax.experimental import pallas as pl

    rows, cols = geometry.rows, geometry.cols
    for j in range(cols.blocks):
        first = geometry.first_col - cols.halo + j * cols.block
        at = (pl.ds(row * rows.block, rows.keys), slice(first, first + geometry.key_cols))
        square = _zero_beyond(padded[at], cols.keys)
        squares[j] = square.reshape(geometry.keys, LANES).astype(squares.dtype)
    _clear_rest(squares, geometry)


def add_squares(squares, padded, row, geometry: Geometry) -> None:
    """Adds squares [C', keys, 128] to where they were cut from."""
    from jax.experimental import pallas as pl

    rows, cols = geometry.rows, geometry.cols
    for j in range(cols.blocks):
        first = geometry.first_col - cols.halo + j * cols.block
        at = (pl.ds(row * rows.block, rows.keys), slice(first, first + geometry.key_cols))
        padded[at] += squares[j].reshape(rows.keys, geometry.key_cols, LANES)


def cut_blocks(padded, blocks, row, geometry: Geometry) -> None:
    """Queries of the blocks of block row `row` -> f32 [C', queries, 128], zeros at the end."""
    from jax.experimental import pallas as pl

    rows, cols, width = geometry.rows, geometry.cols, geometry.block_cols
    count = rows.block * width
    for j in range(cols.blocks):
        first = geometry.first_col + j * cols.block
        at = (pl.ds(rows.halo + row * rows.block, rows.block), slice(first, first + width))
        block = _zero_beyond(padded[at], cols.block).reshape(count, LANES)
        blocks[j, :count] = block
        if count < geometry.queries:
            blocks[j, count:] = jnp.zeros((geometry.queries - count, LANES), jnp.float32)
    _clear_rest(blocks, geometry)


def put_blocks(blocks, padded, row, geometry: Geometry) -> None:
    """Blocks f32 [C', queries, 128] to where they were cut from.

    What stands beyond the columns of a block is overwritten by the next one, or lies outside the
    map.
    """
    from jax.experimental import pallas as pl

    rows, cols, width = geometry.rows, geometry.cols, geometry.block_cols
    count = rows.block * width
    for j in range(cols.blocks):
        first = geometry.first_col + j * cols.block
        at = (pl.ds(rows.halo + row * rows.block, rows.block), slice(first, first + width))
        padded[at] = blocks[j, :count].reshape(rows.block, width, LANES)
