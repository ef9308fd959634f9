"""Attention in a window around each pixel, of packed maps (`packing`), with its gradients.

Dimension letters: T tiles, H rows of a map, d query/key width a head, e value width a head, S
sublanes, L lanes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.window import projection
from vitattn.kernels.tpu.window.backward import backward
from vitattn.kernels.tpu.window.bands import banded
from vitattn.kernels.tpu.window.forward import forward
from vitattn.kernels.tpu.window.packing import Packing
from vitattn.kernels.tpu.window.projection import pack, packing_of, unpack
from vitattn.kernels.tpu.window.rows import Sizes

Array = jax.Array
Tables = tuple[Array, ...]
Passes = tuple[Sizes, Sizes]  # of the forward and of the backward kernel
Shaped = Array | jax.ShapeDtypeStruct

_MOST_WINDOW = 15


def takes(
    q: Shaped,
    k: Shaped | None,
    v: Shaped,
    window: int,
    *,
    position: bool,
    channels: int | None = None,
) -> bool:
    """Whether `window_attention` computes these maps on the device traced for.

    Args:
      q: [B, H, W, N, d], or its shape.
      k: [B, H, W, N, d], or None.
      v: [B, H, W, N, e].
      window: side of the window; the code of the kernels grows with its square.
      position: with tables.
      channels: C of a map [B, H, W, C] that all three are projected from, in the kernels; None
        where they are packed as they are.
    """
    maps = [x for x in (q, k, v) if x is not None]
    # Sizes of an exported program may be unknown.
    known = all(isinstance(size, int) and size > 0 for x in maps for size in x.shape)
    if not known or window > _MOST_WINDOW or not (position or k is not None):
        return False
    if any(x.dtype not in (jnp.float32, jnp.bfloat16) for x in maps):
        return False
    batch, height, width, heads, depth = q.shape
    if position and depth < 2:  # a table without channels
        return False
    packing = packing_of(batch, heads, height, width, window)
    sizes = Sizes(
        packing, depth, v.shape[-1], k is not None, position, mask_border=False, scale=1.0
    )
    item, depths = max(x.dtype.itemsize for x in maps), [x.shape[-1] for x in maps]
    if channels is None:
        depths = [max(depths)]
    shape = (*q.shape[:3], channels or heads * depths[0])
    if not projection.fits(packing, shape, depths, item):
        return False
    return all(banded(sizes, item, backward=backward) for backward in (False, True))


def window_attention(
    q: Array,
    k: Array | None,
    v: Array,
    tables: Tables,
    *,
    window: int,
    scale: float | None,
    mask_border: bool,
    interpret: bool,
) -> Array:
    """`packed_window_attention` of maps [B, H, W, N, d]."""
    batch, height, width, heads, _ = q.shape
    packing = packing_of(batch, heads, height, width, window)
    row, col = tables or (None, None)

    def packed(x: Array) -> Array:
        return pack(x.reshape(*x.shape[:3], -1), heads, packing, interpret)

    out = packed_window_attention(
        packed(q),
        None if k is None else packed(k),
        packed(v),
        row,
        col,
        packing,
        scale=scale,
        mask_border=mask_border,
        interpret=interpret,
    )
    maps: Array = unpack(out, heads, batch, packing, interpret)
    return maps.reshape(v.shape)


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
    bands: int | None = None,
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
      bands: of rows that the maps are computed in; None takes as few as the memory of the device
        traced for asks for. Results do not depend on it.

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
    passes = tuple(
        dataclasses.replace(sizes, bands=bands)
        if bands
        else banded(sizes, v.dtype.itemsize, backward=backward) or sizes
        for backward in (False, True)
    )
    tables = () if rel_row is None or rel_col is None else (rel_row, rel_col)
    # Queries of one channel have none for rows; a kernel takes no array without elements.
    tables = [x if x.size else jnp.zeros((packing.window, 1), x.dtype) for x in tables]
    # Every lane has the number by itself, and a gradient of it: XLA sums those.
    tables = tuple(
        jnp.broadcast_to(
            table.astype(jnp.float32)[..., None, None], (*table.shape, *sizes.register)
        )
        for table in tables
    )
    return _attention(q, k, v, tables, passes, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    q: Array, k: Array | None, v: Array, tables: Tables, sizes: Passes, interpret: bool
) -> Array:
    return forward(q, k, v, tables, sizes[0], interpret)[0]


def _forward(q, k, v, tables, sizes, interpret):
    out, logsumexp = forward(q, k, v, tables, sizes[0], interpret)
    return out, (q, k, v, tables, out, logsumexp)


def _backward(sizes, interpret, residuals, dout):
    q, k, v, tables, out, logsumexp = residuals
    dq, dk, dv, dtables = backward(q, k, v, tables, out, logsumexp, dout, sizes[1], interpret)
    return dq, dk, dv, tuple(dtables)


_attention.defvjp(_forward, _backward)
