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

from trainlib.errors import one_of
from trainlib.sharding import batch_local
from vitattn.layers.tiling import attend_tiled, map_images, plan

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
    implementation: str = "xla",
) -> Array:
    """Self-attention of every pixel to every pixel of its image.

    Args:
      q: [B, N, H, W, d], already scaled (the scale covers content and relative logits).
      k: [B, N, H, W, d].
      v: [B, N, H, W, e].
      rel_h: [2H-1, d], shared by the heads; None together with rel_w for no position term.
      rel_w: [2W-1, d].
      rows_per_tile: query rows of one tile, a divisor of H; None chooses by the size of the logits.
      implementation: "xla", or "cudnn" for the fused kernel of an NVIDIA GPU (bfloat16 or float16).

    Returns:
      [B, N, H, W, e] in the type of v.
    """
    if implementation not in ("xla", "cudnn"):
        raise one_of("implementation", implementation, ("xla", "cudnn"))
    tables = () if rel_h is None or rel_w is None else (rel_h, rel_w)

    def local(q: Array, k: Array, v: Array, *tables: Array) -> Array:
        if tables:
            height, width = q.shape[2:4]
            tables = (tables[0][relative_index(height)], tables[1][relative_index(width)])
        if implementation == "cudnn":
            return _fused(q, k, v, *tables)
        return _looped(q, k, v, tables, rows_per_tile)

    return batch_local(local)(q, k, v, replicated=tables)


def _looped(q: Array, k: Array, v: Array, tables: tuple[Array, ...], rows: int | None) -> Array:
    """`tables` are gathered: row term [H, H, d], column term [W, W, d], or none of them."""
    batch, heads, height, width, _ = q.shape
    tiles = plan(batch, heads, height, width * height * width * 4)
    if rows:
        tiles = dataclasses.replace(tiles, steps=rows)

    def chunk(inputs: tuple[Array, Array, Array]) -> Array:
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in inputs)
        bias = position_bias(q, *tables) if tables else ()
        flat = (x.reshape(x.shape[0], height * width, -1) for x in (q, k, v))
        out = attend_tiled(*flat, bias, tiles, width)
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
    bias_row = jnp.einsum("nyxd,yYd->nYyx", q, row_table.astype(q.dtype))
    bias_col = jnp.einsum("nyxd,xXd->nXyx", q, col_table.astype(q.dtype))
    flat = (*bias_row.shape[:2], -1), (*bias_col.shape[:2], -1)
    return bias_row.reshape(flat[0]), bias_col.reshape(flat[1])


def augment_features(
    q: Array, k: Array, row_table: Array, col_table: Array, multiple: int = 8
) -> tuple[Array, Array]:
    """Queries and keys whose plain inner product is the whole logit, for kernels without a bias.

    q' = [q, bias_col, bias_row], k' = [k, one-hot of the key's column, one-hot of its row]: the
    gradient of the position terms arrives as part of that of q'. A learned bias of [N, HW, HW]
    could not be trained through cuDNN.

    Args:
      q: [B, N, H, W, d].
      k: [B, N, H, W, d].
      row_table: [H, H, d], gathered.
      col_table: [W, W, d], gathered.
      multiple: the width is filled with zeros to a multiple of this.

    Returns:
      q', k': [B, N, HW, d'].
    """
    batch, heads, height, width, depth = q.shape
    terms = jax.vmap(position_bias, (0, None, None))(q, row_table, col_table)
    bias_row, bias_col = (term.swapaxes(-1, -2) for term in terms)
    flat = (batch, heads, height * width)
    cols = jnp.tile(jnp.eye(width, dtype=k.dtype), (height, 1))
    rows = jnp.repeat(jnp.eye(height, dtype=k.dtype), width, axis=0)
    fill = -(depth + height + width) % multiple
    keys = [k.reshape(*flat, depth)]
    keys += [jnp.broadcast_to(hot, (*flat, hot.shape[-1])) for hot in (cols, rows)]
    keys += [jnp.zeros((*flat, fill), k.dtype)]
    queries = [q.reshape(*flat, depth), bias_col, bias_row, jnp.zeros((*flat, fill), q.dtype)]
    return jnp.concatenate(queries, -1), jnp.concatenate(keys, -1)


def _fused(q: Array, k: Array, v: Array, *tables: Array) -> Array:
    """The same through cuDNN's flash attention. Wants Hopper and cuDNN 9.10: v is not padded."""
    batch, heads, height, width, _ = q.shape
    value_width = v.shape[-1]
    if tables:
        q, k = augment_features(q, k, *tables)
    flat = (batch, heads, height * width)
    to_btnh = [x.reshape(*flat, x.shape[-1]).swapaxes(1, 2) for x in (q, k, v)]
    out = jax.nn.dot_product_attention(*to_btnh, scale=1.0, implementation="cudnn")
    return out.swapaxes(1, 2).reshape(batch, heads, height, width, value_width)
