"""Matrices of experts as int8, with a float32 scale for each output channel of each expert.

Letters: I inputs and O outputs of a matrix.

    scale [.., O] = max over inputs |w| / 127      q = round(w / scale)      w' = q scale

There is no zero point, and q is rounded to the nearest (half to even), so |w' - w| is at most half
of the channel's scale. A whole number of at most 127 is exact in bfloat16.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe.kernels.batched import Weights

MATRICES = ("gate", "up", "down")  # [.., I, O] of experts
LARGEST = 127
_SCALE = "_scale"
SCALES = tuple(name + _SCALE for name in MATRICES)


def scale_of(name: str) -> str:
    """The name of the scales of a matrix: "up" -> "up_scale"."""
    return name + _SCALE


def rounded(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Float [.., I, O] -> int8 [.., I, O] and its scales, float32 [.., O].

    A channel of zeros has the scale 1; one that holds NaN or infinity a scale that is not finite.
    """
    w = w.astype(jnp.float32)
    scale = jnp.max(jnp.abs(w), axis=-2) / LARGEST
    scale = jnp.where(scale == 0, 1.0, scale)  # also where it is too small for float32
    q = jnp.clip(jnp.round(w / scale[..., None, :]), -LARGEST, LARGEST)
    return q.astype(jnp.int8), scale


def restored(q: jax.Array, scale: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The inverse of `rounded`, in the type `dtype`: rounded once, from float32."""
    return (q.astype(jnp.float32) * scale[..., None, :]).astype(dtype)


def in_type(weights: Weights, dtype: DTypeLike) -> Weights:
    """The weights of experts in the compute type, without scales.

    Args:
      weights: [E, ..], float32, bfloat16, or int8 with scales beside them.
      dtype: of the tokens.
    """
    return {
        name: restored(value, weights[scale_of(name)], dtype)
        if scale_of(name) in weights
        else value.astype(dtype)
        for name, value in weights.items()
        if name not in SCALES
    }
