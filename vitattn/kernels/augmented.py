"""Attention of an augmented convolution with the projections around it, where a kernel has all.

Letters: B batch, H W map, N heads, C F channels of the map and of the result, d e depth of keys and
values.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from trainlib.sharding.constrain import batch_is_local, batch_local
from trainlib.sharding.kernels import kernel_mode

Array = jax.Array


def augmented_half(
    x: Array,
    qkv: Array,
    out: Array,
    tables: Sequence[Array],
    *,
    num_heads: int,
    scale: float | None = None,
) -> Array | None:
    """What `relative_attention_2d` makes of the projections of a map, projected once more.

    Args:
      x: [B, H, W, C], float32 or bfloat16.
      qkv: [C, N (2 d + e)], the projections: queries of all heads, then keys, then values.
      out: [N e, F], the projection of the result.
      tables: [2H-1, d] and [2W-1, d] of `relative_attention_2d`, or none.
      num_heads: N.
      scale: see there.

    Returns:
      [B, H, W, F] in the type of x; None where the program is traced for no TPU, or the kernel
      cannot do it: a map above 32 x 32 or too much for the memory of the chip, another type, a
      batch without a fixed size, or one that the partitioner has (`batch_is_local`). Gradients of
      weights are summed in float32.
    """
    # Where no kernel is taken nothing of Pallas is imported.
    mode = kernel_mode()
    if mode is None or x.dtype not in (jnp.float32, jnp.bfloat16):
        return None
    if not all(isinstance(size, int) for size in x.shape) or not batch_is_local():
        return None
    from vitattn.kernels.tpu.relative import half
    from vitattn.kernels.tpu.relative.shape import Shape

    depth = out.shape[0] // num_heads
    key_depth = (qkv.shape[1] // num_heads - depth) // 2
    shape = Shape(x.shape[1], x.shape[2], key_depth, depth, bool(tables))
    if not half.fits(shape, num_heads, qkv.shape[0], out.shape[1], x.dtype):
        return None
    factor = key_depth**-0.5 if scale is None else scale

    def local(x: Array, *weights: Array) -> Array:
        given = half.packed(shape, num_heads, factor, weights[0], weights[1], weights[2:])
        return half.augmented_half(shape, num_heads, mode == "interpret", x, given)

    return batch_local(local)(x, replicated=(qkv, out, *tables))
