"""Global self-attention over a 2-D map with relative positions (arXiv 1904.09925, section 3).

Dimension letters: B batch, N heads, H W map, d query/key width a head, e value width a head.

With s the scale, the logit between the query at (y, x) and the key at (Y, X) is
s (q.k + q.rel_h[Y-y+H-1] + q.rel_w[X-x+W-1]). Both position terms are factors of the separable bias
of `attend`, so the memory is O(HW(H+W)) a head beside one tile of logits, and that of some rows of
queries alone in large images. Images, and rows of queries of large images, are looped over;
position factors are rebuilt inside the loop. Callers have the heads
of a pixel together, as a projection makes them; the loop has the pixels of a head together, as
products of queries and keys want them.

Programs for a TPU take the kernels of `vitattn.kernels.tpu.relative` for maps that fit into the
memory of the core, 80 x 80 pixels on all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from trainlib.sharding.constrain import batch_is_local, batch_local
from trainlib.sharding.kernels import kernel_mode
from vitattn.kernels.plain.attend import (
    attend,
    attention_weights,
    check_heads,
    checked_tables,
    keep_outputs,
    scaled,
)
from vitattn.kernels.plain.tiling import Tiles, attend_tiled, map_images, plan, serial_map
from vitattn.kernels.tpu.relative.packed import Packing, packed_relative_attention

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
    scale: float | None = None,
    rows_per_tile: int | None = None,
) -> Array:
    """Self-attention of every pixel to every pixel of its image (arXiv 1904.09925, section 3).

    Args:
      q: [B, H, W, N, d], heads before the depth of a head; not scaled.
      k: [B, H, W, N, d].
      v: [B, H, W, N, e]; e may differ from d.
      rel_h: [2H-1, d], shared by the heads: row Y-y+H-1 is for a key in row Y of a query in row y.
        None together with rel_w for no position term.
      rel_w: [2W-1, d], the same for columns.
      scale: what content and position terms are multiplied by; None is d**-0.5, as in the paper.
      rows_per_tile: query rows of one tile of the plain form, a divisor of H; None chooses by the
        size of the logits.

    Returns:
      [B, H, W, N, e] in the type of v; the softmax is float32 whatever the inputs are.

    Raises:
      ConfigError: tables of another size than the map, or one table of the two.
      InputError: q, k and v of shapes that do not go together, or of whole numbers.

    Example:
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 14, 14, 8, 32))
      >>> relative_attention_2d(q, k, v).shape  # [B, H, W, N, d]
      (2, 14, 14, 8, 32)
    """
    check_heads("relative_attention_2d", q, k, v)
    offsets = (2 * q.shape[1] - 1, 2 * q.shape[2] - 1)
    tables = checked_tables(rel_h, rel_w, offsets, (q.shape[-1], q.shape[-1]))

    mode = kernel_mode()
    packing = Packing(q.shape[1], q.shape[2], q.shape[-1], v.shape[-1])
    if mode is not None and batch_is_local() and packing.fits(q, k, v):

        def kernel(q: Array, k: Array, v: Array, *tables: Array) -> Array:
            q, k, packed = packing.pack(q), packing.pack(k), packing.pack(v)
            row, col = tables or (None, None)
            interpret = mode == "interpret"
            out = packed_relative_attention(
                q, k, packed, row, col, packing, scale=scale, interpret=interpret
            )
            return packing.unpack(out, v.shape[3])

        return batch_local(kernel)(q, k, v, replicated=tables)

    def local(q: Array, k: Array, v: Array, *tables: Array) -> Array:
        q, k, v = scaled(_by_head(q), scale), _by_head(k), _by_head(v)
        out = _looped(q, k, v, gathered(tables, q.shape[2:4]), rows_per_tile)
        return out.transpose(0, 2, 3, 1, 4)

    return batch_local(local)(q, k, v, replicated=tables)


def relative_attention_maps(
    q: Array, k: Array, rel_h: Table = None, rel_w: Table = None, *, scale: float | None = None
) -> Array:
    """The probabilities of `relative_attention_2d`, materialised: for pictures only.

    Returns:
      f32 [B, N, H, W, H, W], query before key. For the arguments see `relative_attention_2d`.
    """
    q, k = scaled(_by_head(q), scale), _by_head(k)  # [B, N, H, W, d]
    batch, heads, height, width, depth = q.shape
    tables, bias = () if rel_h is None or rel_w is None else (rel_h, rel_w), ()
    if tables:
        # [B, N, H, HW] and [B, N, W, HW]
        row_table, col_table = gathered(tables, (height, width))
        bias = jax.vmap(position_bias, (0, None, None))(q, row_table, col_table)
    flat = (batch, heads, height * width, depth)
    weights = attention_weights(q.reshape(flat), k.reshape(flat), *bias)  # [B, N, HW, HW]
    return weights.reshape(batch, heads, height, width, height, width)


def _by_head(x: Array) -> Array:
    """[B, H, W, N, .] -> [B, N, H, W, .]."""
    return x.transpose(0, 3, 1, 2, 4)


def gathered(tables: Sequence[Array], size: Sequence[int]) -> tuple[Array, ...]:
    """Tables of offsets as `position_bias` takes them, [H, H, d] and [W, W, d]; none for none."""
    return tuple(t[relative_index(side)] for t, side in zip(tables, size, strict=False))


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
        if tables and tiles.steps < height:
            return _by_rows(q, k, v, tables, tiles).reshape(*inputs[2].shape)
        bias = position_bias(q, *tables) if tables else ()  # [I N, H, HW] and [I N, W, HW]
        q, k, v = (x.reshape(x.shape[0], height * width, -1) for x in (q, k, v))  # [I N, HW, .]
        out = attend_tiled(q, k, v, bias, tiles, width)
        return out.reshape(-1, heads, height, width, out.shape[-1])

    return map_images(chunk, (q, k, v), tiles)


def _by_rows(q: Array, k: Array, v: Array, tables: tuple[Array, ...], tiles: Tiles) -> Array:
    """Attention of a large image, some rows of queries at a time, with the position terms of those
    alone: of all they are H + W numbers a query and head, many times what the map holds.

    Args:
      q: [N, H, W, d].
      k: [N, H, W, d].
      v: [N, H, W, e].
      tables: gathered, [H, H, d] and [W, W, d].
      tiles: heads and rows of queries of a tile.

    Returns:
      [N, H, W, e].
    """
    row_table, col_table = tables
    _, height, width, depth = q.shape
    of_rows = row_table.reshape(-1, tiles.steps, height, depth)  # [H / r, r, H, d]

    def some_heads(inputs: tuple[Array, ...]) -> Array:
        q, k, v = inputs  # [n, H, W, .]
        keys, values = (x.reshape(x.shape[0], height * width, -1) for x in (k, v))

        def rows(inputs: tuple[Array, Array]) -> Array:
            q, table = inputs  # [n, r, W, d] and [r, H, d]
            bias = jax.lax.optimization_barrier(position_bias(q, table, col_table))
            return attend(q.reshape(q.shape[0], -1, depth), keys, values, *bias)

        q = q.reshape(q.shape[0], -1, tiles.steps, width, depth).swapaxes(0, 1)
        out = jax.lax.map(keep_outputs(rows), (q, of_rows))  # [H / r, n, r W, e]
        return out.swapaxes(0, 1).reshape(v.shape)

    return serial_map(some_heads, (q, k, v), tiles.groups)


def position_bias(q: Array, row_table: Array, col_table: Array) -> tuple[Array, Array]:
    """Row and column terms of the relative logits.

    Args:
      q: [N, H, W, d]; H of queries may be some rows of the map alone, as may that of `row_table`.
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
