"""Attention in a window around each pixel, of packed maps (`packing`), with its gradients.

Dimension letters: T tiles, H rows of a map, d query/key width a head, e value width a head, S
sublanes, L lanes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.window.backward import backward
from vitattn.kernels.tpu.window.forward import forward
from vitattn.kernels.tpu.window.packing import Packing
from vitattn.kernels.tpu.window.rows import Sizes

Array = jax.Array
Tables = tuple[Array, ...]


def packed_window_attention(
    q: Array,
    k: Array | None,
    v: Array,
    rel_row: Array | None,
    rel_col: Array | None,
    packing: Packing,
    *,
    scale: float | None = None,
    mask_border: bool = False,
    interpret: bool = False,
) -> Array:
    """`vitattn.kernels.local.local_attention` of packed maps, in value and gradients.

    Args:
      q: [T, H, d, S, L], see `Packing`; its padding holds zeros, as that of k and v.
      k: [T, H, d, S, L], or None for logits of the position term alone.
      v: [T, H, e, S, L].
      rel_row: [window, d // 2], or None together with rel_col for no position term.
      rel_col: [window, d - d // 2].
      packing: sizes.
      scale: what content and position terms are multiplied by; None is d**-0.5.
      mask_border: leaves pixels outside the map out of the softmax; otherwise they count as zeros.
      interpret: run the kernels step by step on any backend, for tests.

    Returns:
      [T, H, e, S, L] in the type of v, with zeros in the padding; so have the gradients.
    """
    depth = q.shape[2]
    sizes = Sizes(
        packing=packing,
        depth=depth,
        values=v.shape[2],
        content=k is not None,
        position=rel_row is not None,
        mask_border=mask_border,
        scale=depth**-0.5 if scale is None else scale,
    )
    tables = () if rel_row is None or rel_col is None else (rel_row, rel_col)
    # Every lane has the number by itself, and a gradient of it: XLA sums those.
    tables = tuple(
        jnp.broadcast_to(
            table.astype(jnp.float32)[..., None, None], (*table.shape, *sizes.register)
        )
        for table in tables
    )
    return _attention(q, k, v, tables, sizes, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    q: Array, k: Array | None, v: Array, tables: Tables, sizes: Sizes, interpret: bool
) -> Array:
    return forward(q, k, v, tables, sizes, interpret)[0]


def _forward(q, k, v, tables, sizes, interpret):
    out, logsumexp = forward(q, k, v, tables, sizes, interpret)
    return out, (q, k, v, tables, out, logsumexp)


def _backward(sizes, interpret, residuals, dout):
    q, k, v, tables, out, logsumexp = residuals
    dq, dk, dv, dtables = backward(q, k, v, tables, out, logsumexp, dout, sizes, interpret)
    return dq, dk, dv, tuple(dtables)


_attention.defvjp(_forward, _backward)
