"""Local attention on a small map: keys outside of it without a place of their own.

Letters: I images, N heads, R C rows and columns of blocks of b x b queries, K window, d depth.

Keys outside the map are zeros: the logit of one is its position term, a row term plus a column
term, and its value is 0. All that it does is to add exp(row + column) to the softmax of a query,
and the sum of those over a window without the part of it that lies in the map is

    sum(all rows) sum(all columns) - sum(rows inside) sum(columns inside)

with sums of exp over the K offsets of an axis. So where a map has no more than two blocks along an
axis, each block has the keys that are there alone: 10 x 10 of 13 x 13 for blocks of 7 x 7 on a map
of 14 x 14 pixels, and 7 x 7 of them where a block is the map.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vitattn.kernels.plain.attend import MASK_BIAS

Array = jax.Array

_FEW = 16
_LEAST = 1e-30  # of a share of a softmax: its logarithm and gradient are finite


def inside_starts(size: int, block: int, halo: int) -> tuple[tuple[int, ...], int] | None:
    """The first key of each block along an axis and how many there are, all inside the map; None
    where that is no less than a block and its halo.
    """
    blocks = -(-size // block)
    if blocks > 2 or min(size, block + halo) >= block + 2 * halo:
        return None
    length = min(size, block + (blocks - 1) * halo)
    first = [min(max(n * block - halo, 0), size - length) for n in range(blocks)]
    return tuple(first), length


def outside(size: int, block: int, window: int) -> np.ndarray:
    """bool [R, b, K]: which offsets of the window of a query lie outside the map."""
    query = np.arange(-(-size // block) * block).reshape(-1, block, 1)
    key = query + np.arange(window) - window // 2
    return (key < 0) | (key >= size)


def beside(q: Array, tables: Sequence[Array], rows: np.ndarray, cols: np.ndarray) -> Array:
    """Logsumexp f32 [I, N, C, R, b, b] of the logits of the keys outside the map.

    Args:
      q: [I, N, C, R, b, b, d], scaled.
      tables: [K, d // 2] and [K, d - d // 2], or none.
      rows: bool [R, b, K] of `outside`.
      cols: bool [C, b, K].
    """
    some = np.any(rows[:, :, None], -1) | np.any(cols[:, None, None], -1)  # [C, R, b, b]
    # Offsets first: sums over them run along queries.
    rows = rows.transpose(2, 0, 1)[:, None, None, None, :, :, None]  # [K, 1, 1, 1, R, b, 1]
    cols = cols.transpose(2, 0, 1)[:, None, None, :, None, None]  # [K, 1, 1, C, 1, 1, b]
    row = col = jnp.zeros((len(rows), *q.shape[:-1]), jnp.float32)
    if tables:
        # One product with both, for halves of q would be copied first.
        row, col = (table.astype(q.dtype) for table in tables)
        row, col = (
            jnp.pad(row, ((0, 0), (0, col.shape[1]))),
            jnp.pad(col, ((0, 0), (row.shape[1], 0))),
        )
        both = jnp.einsum("...d,kd->...k", q, jnp.concatenate([row, col]))
        # The barrier keeps the transposition apart: within the product it would be that of q.
        both = jnp.moveaxis(jax.lax.optimization_barrier(both), -1, 0).astype(jnp.float32)
        row, col = both[: len(rows)], both[len(rows) :]  # [K, I, N, C, R, b, b]
    top_row, top_col = (jax.lax.stop_gradient(x.max(0)) for x in (row, col))
    row, col = jnp.exp(row - top_row), jnp.exp(col - top_col)
    share = _total(row * rows) * _total(col) + _total(row * ~rows) * _total(col * cols)
    share = jnp.log(jnp.maximum(jnp.where(some, share, 1.0), _LEAST))
    return jnp.where(some, share + top_row + top_col, MASK_BIAS)


def _total(x: Array) -> Array:
    """Sum over the first axis; of a few maps they are added, which XLA does not make a loop of."""
    return functools.reduce(jnp.add, list(x)) if len(x) <= _FEW else jnp.sum(x, 0)
