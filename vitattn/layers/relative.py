"""Global self-attention over a 2-D map with relative positions (arXiv 1904.09925, section 3).

Dimension letters: B batch, N heads, H W map, d query/key width a head, e value width a head, r rows
of a tile.

The logit between the query at (y, x) and the key at (Y, X) is q.k + q.rel_h[Y-y+H-1] +
q.rel_w[X-x+W-1]. Both position terms are factors of the separable bias of `attend`, so the memory
is O(HW(H+W)) a head beside one tile of logits. Images, and row blocks of large images, are looped
over; position factors are rebuilt inside the loop.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from trainlib.errors import one_of
from trainlib.sharding import batch_local
from vitattn.layers.attend import attend, keep_outputs

Array = jax.Array
Table = jax.Array | None

# Logits of one tile. On a CPU they should stay in the cache (larger tiles lose up to 1.7x); an
# accelerator wants the whole batch at once and is bounded by its memory only.
_CPU_TILE_BYTES = 3 << 20
_ACCELERATOR_TILE_BYTES = 1 << 30


def tile_bytes() -> int:
    """Bytes of float32 logits that one tile may have on the default backend."""
    return _CPU_TILE_BYTES if jax.default_backend() == "cpu" else _ACCELERATOR_TILE_BYTES


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit` (at least 1)."""
    return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(1, limit))


def map_batched(body, xs, size: int):
    """`lax.map` of `body` over the leading axis of `xs`, `size` entries at a time (a divisor)."""
    count = jax.tree.leaves(xs)[0].shape[0]
    if size == count:
        return jax.vmap(body)(xs)
    return jax.lax.map(body, xs) if size == 1 else jax.lax.map(body, xs, batch_size=size)


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
    batch, heads, height, width, depth = q.shape
    row_bytes = heads * width * height * width * 4
    rows = rows or largest_divisor(height, tile_bytes() // row_bytes)
    images = largest_divisor(batch, tile_bytes() // (row_bytes * height))

    def image(inputs: tuple[Array, Array, Array]) -> Array:
        q, k, v = inputs
        keys = k.reshape(heads, height * width, depth)
        values = v.reshape(heads, height * width, -1)

        def tile(inputs: tuple[Array, ...]) -> Array:
            q, *row_table = inputs
            queries = q.reshape(heads, rows * width, depth)
            bias = position_bias(q, row_table[0], tables[1]) if tables else ()
            return attend(queries, keys, values, *bias)

        q = q.reshape(heads, height // rows, rows, width, depth).swapaxes(0, 1)
        row_tables = tables and (tables[0].reshape(height // rows, rows, height, depth),)
        # A tile that is the whole image needs no checkpoint of its own.
        body = tile if rows == height else keep_outputs(tile)
        out = map_batched(body, (q, *row_tables), 1)
        return out.swapaxes(0, 1).reshape(heads, height, width, -1)

    return map_batched(keep_outputs(image), (q, k, v), images)


def position_bias(q: Array, row_table: Array, col_table: Array) -> tuple[Array, Array]:
    """Row and column terms of the relative logits, for queries [N, r, W, d] of some rows.

    Args:
      q: [N, r, W, d].
      row_table: [r, H, d], the table gathered at (query row, key row).
      col_table: [W, W, d], gathered at (query column, key column).

    Returns:
      bias_row [N, r*W, H] and bias_col [N, r*W, W], as `attend` takes them.
    """
    bias_row = jnp.einsum("nyxd,yYd->nyxY", q, row_table.astype(q.dtype))
    bias_col = jnp.einsum("nyxd,xXd->nyxX", q, col_table.astype(q.dtype))
    queries = q.shape[1] * q.shape[2]
    return (
        bias_row.reshape(q.shape[0], queries, -1),
        bias_col.reshape(q.shape[0], queries, -1),
    )


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
    bias_row, bias_col = jax.vmap(position_bias, (0, None, None))(q, row_table, col_table)
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
