"""Global self-attention over a 2-D map with relative positions (arXiv 1904.09925, section 3).

Dimension letters: B batch, N heads, H W map, d query/key width a head, e value width a head.

The logit between the query at (y, x) and the key at (Y, X) is q.k + q.rel_h[Y-y+H-1] +
q.rel_w[X-x+W-1]. Both position terms are factors of the separable bias of `attend`, so the memory
is O(HW(H+W)) a head beside one tile of logits. Images, and row blocks of large images, are looped
over; position factors are rebuilt inside the loop.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from trainlib.sharding.constrain import batch_local
from vitattn.kernels.tiling import attend_tiled, map_images, plan

Array = jax.Array
Table = jax.Array | None


def relative_index(size: int) -> np.ndarray:
    """[query, key] -> row of a table of 2*size-1 relative offsets."""
    return np.arange(size)[None, :] - np.arange(size)[:, None] + size - 1


def relative_attention_2d(
    q: Array,
    k: Array,
    v: Array,
    rel_h: Table = None,
    rel_w: Table = None,
    *,
    rows_per_tile: int | None = None,
) -> Array:
    """Self-attention of every pixel to every pixel of its image.

    Args:
      q: [B, N, H, W, d], already scaled (the scale covers content and relative logits).
      k: [B, N, H, W, d].
      v: [B, N, H, W, e].
      rel_h: [2H-1, d], shared by the heads; None together with rel_w for no position term.
      rel_w: [2W-1, d].
      rows_per_tile: query rows of one tile, a divisor of H; None chooses by the size of the logits.

    Returns:
      [B, N, H, W, e] in the type of v.
    """
    tables = () if rel_h is None or rel_w is None else (rel_h, rel_w)

    def local(q: Array, k: Array, v: Array, *tables: Array) -> Array:
        if tables:
            height, width = q.shape[2:4]
            tables = (tables[0][relative_index(height)], tables[1][relative_index(width)])
        return _looped(q, k, v, tables, rows_per_tile)

    return batch_local(local)(q, k, v, replicated=tables)


def _looped(q: Array, k: Array, v: Array, tables: tuple[Array, ...], rows: int | None) -> Array:
    """Attention in tiles, [B, N, H, W, e].

    `tables` are gathered: row term [H, H, d], column term [W, W, d], or none of them.
    """
    batch, heads, height, width, _ = q.shape
    tiles = plan(batch, heads, height, width * height * width * 4)
    if rows:
        tiles = dataclasses.replace(tiles, steps=rows)

    def chunk(inputs: tuple[Array, Array, Array]) -> Array:
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in inputs)  # [I N, H, W, .] of I images
        bias = position_bias(q, *tables) if tables else ()  # [I N, H, HW] and [I N, W, HW]
        q, k, v = (x.reshape(x.shape[0], height * width, -1) for x in (q, k, v))  # [I N, HW, .]
        out = attend_tiled(q, k, v, bias, tiles, width)
        return out.reshape(-1, heads, height, width, out.shape[-1])

    return map_images(chunk, (q, k, v), tiles)


def position_bias(q: Array, row_table: Array, col_table: Array) -> tuple[Array, Array]:
    """Row and column terms of the relative logits.

    Args:
      q: [N, H, W, d].
      row_table: [H, H, d], the table gathered at (query row, key row).
      col_table: [W, W, d], gathered at (query column, key column).

    Returns:
      bias_row [N, H, HW] and bias_col [N, W, HW], keys before queries, as `attend` takes them.
    """
    bias_row = jnp.einsum("nyxd,yYd->nYyx", q, row_table.astype(q.dtype))  # [N, H, H, W]
    bias_col = jnp.einsum("nyxd,xXd->nXyx", q, col_table.astype(q.dtype))  # [N, W, H, W]
    return (
        bias_row.reshape(*bias_row.shape[:2], -1),
        bias_col.reshape(*bias_col.shape[:2], -1),
    )
