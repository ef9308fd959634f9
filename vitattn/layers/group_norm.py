"""Group normalisation (Wu & He 2018, arXiv 1803.08494) with float32 statistics.

Letters: B images, C channels, G groups of C / G channels.

Each image is normalised by itself, over its pixels and the channels of a group, alike in training
and without: batches of one or two large images do not disturb it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import ConfigError
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer
from trainlib.model.weights import declare
from vitattn.layers.init import ONES, ZEROS


class GroupNorm(Layer):
    """Normalises [B, H, W, C] over pixels and the channels of each of G groups.

    Args:
      channels: C.
      groups: G, a divisor of C.
      eps: added to the variance.
      rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).

    Raises:
      ConfigError: groups that do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int = 32,
        eps: float = 1e-5,
        rngs: nnx.Rngs | None = None,
    ):
        if groups < 1 or channels % groups:
            raise ConfigError(
                f"groups={groups} of a group normalisation does not divide its {channels} "
                "channels. Change the number of groups or the width."
            )
        self.groups, self.eps = groups, eps
        self.scale = declare((channels,), ("channels",), ONES, rngs)
        self.bias = declare((channels,), ("channels",), ZEROS, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> the same."""
        check_array("GroupNorm", x, "B H W C", "float", C=self.scale.shape[0])
        wide = x.astype(jnp.float32)
        groups = wide.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        mean = jnp.mean(groups, (1, 3), keepdims=True)  # [B, 1, G, 1]
        var = jnp.mean(jnp.square(groups - mean), (1, 3), keepdims=True)
        normal = (groups - mean) * jax.lax.rsqrt(var + self.eps)
        return (normal.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(x.dtype)
