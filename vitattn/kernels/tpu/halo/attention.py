"""Both kernels as one function with a gradient, on the arrays of `vitattn.kernels.local`.

Letters: B batch, H W map, N heads, d e key and value width, R entries of both tables, P channels of
the heads of one product.

Operands stay [B, H, W, N d], as the projections write them: pixels on sublanes, channels on lanes.
Only heads of a width that does not divide a tile of 128 lanes are padded beforehand.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.halo.backward import backward
from vitattn.kernels.tpu.halo.forward import forward
from vitattn.kernels.tpu.halo.geometry import HALF, Axis, Geometry, depth_of
from vitattn.kernels.tpu.registers import LANES, filled

Array = jax.Array

_LOGITS = 1 << 20  # bytes of the logits of a block, which lie in VMEM whole


def geometry_of(
    size: tuple[int, ...],
    block: int,
    halo: int,
    heads: int,
    depth: int,
    mask_border: bool = False,
) -> Geometry:
    """Sizes for a map of `size`; `depth` of a head is the larger of its keys' and values'."""
    depth = depth_of(depth)
    if heads * depth > LANES:
        heads = filled(heads, max(1, LANES // depth))
    rows, cols = (Axis(n, block, halo) for n in size)
    return Geometry(rows, cols, heads, depth, mask_border)


def fits(geometry: Geometry, dtype: jax.typing.DTypeLike, memory: int) -> bool:
    """Whether the kernels can do it within `memory` bytes of VMEM, in float32 or bfloat16.

    Squares of more than 32 rows and columns together with their padding, heads of more than 64
    channels and maps that are too large for the memory are left to the plain form.
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.bfloat16) or geometry.depth > HALF or geometry.hot > HALF:
        return False
    if geometry.keys * geometry.lanes * 4 > _LOGITS:
        return False
    return geometry.vmem(dtype.itemsize, arrays=7, images=6, staged=6) <= 0.9 * memory


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
    q: Array, k: Array, v: Array, table: Array, geometry: Geometry, interpret: bool
) -> Array:
    return forward(q, k, v, table, geometry, interpret)


def _attend_forward(q, k, v, table, geometry, interpret):
    return forward(q, k, v, table, geometry, interpret), (q, k, v, table)


def _attend_backward(geometry, interpret, residuals, do):
    q, k, v, table = residuals
    *gradients, dtable = backward(q, k, v, do, table, geometry, interpret)
    return *gradients, dtable.astype(table.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def _packed(x: Array, geometry: Geometry) -> Array:
    """[B, H, W, N, d] -> [B, H, W, N d] of the kernel."""
    pads = [(0, 0)] * 3 + [(0, geometry.heads - x.shape[3]), (0, geometry.depth - x.shape[4])]
    if pads[3][1] or pads[4][1]:
        x = jnp.pad(x, pads)
    return x.reshape(*x.shape[:3], -1)


def _table(
    tables: tuple[Array, ...], depth: int, geometry: Geometry, dtype: jax.typing.DTypeLike
) -> Array:
    """Both tables below each other, once for each head of a product, [R, P]."""
    shape = (geometry.entries, geometry.depth)
    if not tables:
        return jnp.zeros((shape[0], geometry.pass_depth), dtype)
    row, col = (table.astype(dtype) for table in tables)
    out = jnp.zeros(shape, dtype)
    out = jax.lax.dynamic_update_slice(out, row, (0, 0))
    at = geometry.rows.table_rows, depth - col.shape[1]
    out = jax.lax.dynamic_update_slice(out, col, at)
    return jnp.tile(out, (1, geometry.together))


def attention(
    q: Array,
    k: Array | None,
    v: Array,
    tables: tuple[Array, ...],
    *,
    block: int,
    halo: int,
    mask_border: bool,
    interpret: bool,
) -> Array:
    """`vitattn.kernels.local.halo_attention` of queries that are scaled already.

    Args:
      q: [B, H, W, N, d].
      k: [B, H, W, N, d], or None for logits of the position term alone.
      v: [B, H, W, N, e].
      tables: [2 block + 2 halo - 1, d // 2] and [.., d - d // 2], or none.
      block: side of a block.
      halo: pixels around it.
      mask_border: whether keys outside the map are left out.
      interpret: run the kernels step by step on any backend.

    Returns:
      [B, H, W, N, e] in the type of v.
    """
    depth, width, dtype = q.shape[-1], v.shape[-1], v.dtype
    geometry = geometry_of(*(q.shape[1:3], block, halo, q.shape[3], max(depth, width)), mask_border)
    # Keys of zeros leave the position term alone.
    keys = jnp.zeros_like(q) if k is None else k
    operands = (_packed(x.astype(dtype), geometry) for x in (q, keys, v))
    out: Array = _attend(*operands, _table(tables, depth, geometry, dtype), geometry, interpret)
    out = out.reshape(*v.shape[:3], geometry.heads, geometry.depth)
    return out[..., : v.shape[3], :width]
