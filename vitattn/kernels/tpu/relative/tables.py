"""Tables of relative positions as the kernels read them: both in one array, one below the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.relative.shape import Shape

Array = jax.Array


def packed_tables(shape: Shape, row: Array, col: Array) -> Array:
    """Tables [2H-1, d] and [2W-1, d] -> float32 [R, D], zeros around them."""
    col_rows = shape.offsets - shape.row_offsets
    rows = _placed(row, shape.row_offset, shape.row_offsets, shape.key_rows)
    return jnp.concatenate([rows, _placed(col, shape.col_offset, col_rows, shape.key_rows)])


def _placed(table: Array, first: int, rows: int, columns: int) -> Array:
    below = rows - first - table.shape[0]
    missing = (first, below), (0, columns - table.shape[1])
    return jnp.pad(table.astype(jnp.float32), missing)
