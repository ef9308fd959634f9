"""RMSNorm (arXiv 1910.07467) as in T5: no mean is subtracted and there is no bias.

y = x / sqrt(mean(x^2) + eps) * scale
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from moe.layers.init import ONES
from trainlib.model.layer import Layer
from trainlib.model.weights import declare


def rms_normalise(x: jax.Array, scale: jax.Array | None, eps: float = 1e-6) -> jax.Array:
    """[..., D] -> [..., D] in the type of x, with `scale` float32 [D]; the mean square and the
    product are float32.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y if scale is None else y * scale).astype(x.dtype)


class RMSNorm(Layer):
    """Normalises [..., D] over its last dimension.

    Args:
      d_model: D.
      use_scale: False leaves out the learned scale (a stability ablation of ST-MoE, table 3).
      rngs: see `trainlib.model.weights.declare`.
    """

    def __init__(self, d_model: int, use_scale: bool = True, *, rngs: nnx.Rngs | None = None):
        self.use_scale = use_scale
        if use_scale:
            self.scale = declare((d_model,), ("norm",), ONES, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D] in the type of x; see `rms_normalise`."""
        return rms_normalise(x, self.scale[...] if self.use_scale else None)
