"""The attention of one query whose keys are a square, from its definition: for pictures.

Dimension letters: B batch, H W map, N heads, d query/key width a head, S side of the square
of keys.

Local attention has a window of S = K pixels around the query, halo attention the block of the query
with its halo, S = b + 2h. `vitattn.kernels.local` computes the same for all queries, by blocks;
this file does not share its code, and so the two test each other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vitattn.kernels.plain.attend import MASK_BIAS

Array = jax.Array


class KeyAxis(NamedTuple):
    """The S keys of a query along one axis.

    Attributes:
      keys: i [S], their positions in the map; some position of the map for those outside.
      inside: bool [S], whether they lie in it.
      offsets: i [S], their entries of the relative table.
    """

    keys: np.ndarray
    inside: np.ndarray
    offsets: np.ndarray


def _axis(keys: np.ndarray, offsets: np.ndarray, size: int) -> KeyAxis:
    return KeyAxis(np.clip(keys, 0, size - 1), (keys >= 0) & (keys < size), offsets)


def window_axis(query: int, size: int, window: int) -> KeyAxis:
    """The keys of a query of local attention on an axis of `size` pixels."""
    offsets = np.arange(window)
    return _axis(query - window // 2 + offsets, offsets, size)


def block_axis(query: int, size: int, block: int, halo: int) -> KeyAxis:
    """The keys of a query of halo attention on an axis of `size` pixels."""
    keys = query // block * block - halo + np.arange(block + 2 * halo)
    # Offset 0 of the table is that of the last query of a block from the first of its keys.
    return _axis(keys, keys - query + halo + block - 1, size)


def query_map(
    q: Array,
    k: Array | None,
    tables: tuple[Array, ...],
    rows: KeyAxis,
    cols: KeyAxis,
    size: tuple[int, int],
    *,
    mask_border: bool,
) -> Array:
    """Probabilities of one query over the map.

    Args:
      q: [B, N, d], the query.
      k: [B, H, W, N, d], or None for logits of the position term alone.
      tables: relative tables [offsets, d // 2] of rows and [offsets, d - d // 2] of columns, or
        none.
      rows: rows of the keys.
      cols: columns of the keys.
      size: H, W.
      mask_border: whether keys outside the map are left out of the softmax.

    Returns:
      f32 [B, N, H, W]; it sums to less than one where the query attends beyond the border.
    """
    inside = rows.inside[:, None] & cols.inside[None, :]  # [S, S]
    logits = jnp.zeros((*q.shape[:2], *inside.shape), jnp.float32)  # [B, N, S, S]
    if k is not None:
        keys = k[:, rows.keys][:, :, cols.keys]  # [B, S, S, N, d]
        keys = keys * inside[..., None, None].astype(k.dtype)
        logits += jnp.einsum("bnd,byxnd->bnyx", q, keys, preferred_element_type=jnp.float32)
    if tables:
        half = tables[0].shape[-1]
        row_table, col_table = tables[0][rows.offsets], tables[1][cols.offsets]  # [S, d / 2]
        logits += jnp.einsum("bnd,yd->bny", q[..., :half], row_table.astype(q.dtype))[..., None]
        logits += jnp.einsum("bnd,xd->bnx", q[..., half:], col_table.astype(q.dtype))[:, :, None]
    if mask_border:
        logits = jnp.where(inside, logits, MASK_BIAS)
    square = jax.nn.softmax(logits, axis=(-2, -1)) * inside  # [B, N, S, S]
    whole = jnp.zeros((*q.shape[:2], *size), jnp.float32)  # [B, N, H, W]
    return whole.at[:, :, rows.keys[:, None], cols.keys[None, :]].add(square)
