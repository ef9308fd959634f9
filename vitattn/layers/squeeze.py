"""Gates on channels and pixels, which the attention papers compare with.

Letters: B batch, H W map, C channels, r reduction ratio.

All of them multiply a map [B, H, W, C] by numbers in (0, 1) that come from its averages:
squeeze-and-excitation (Hu et al. 2017, arXiv 1709.01507), the convolutional block attention module
(Woo et al. 2018, arXiv 1807.06521), and gather-excite without parameters over the whole map
(Hu et al. 2018, arXiv 1810.12348).
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import one_of
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer
from trainlib.model.weights import declare
from vitattn.layers.conv import Conv
from vitattn.layers.init import HE_FAN_IN, ZEROS
from vitattn.layers.norm import BatchNorm, Weights

Rngs = nnx.Rngs | None
GATES = ("none", "se", "cbam", "gather_excite")


class Gate(Protocol):
    """What ends a residual branch."""

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> the same; `train` and `weights` are for a gate that normalises."""
        ...


class Bottleneck(Layer):
    """C -> hidden -> C with a ReLU between, on averages [B, C] in float32."""

    def __init__(self, channels: int, hidden: int, *, rngs: Rngs = None):
        # The narrow side would not divide over a mesh: only the wide one is split.
        self.down = declare((channels, hidden), ("conv_in", "conv_out"), HE_FAN_IN, rngs)
        self.down_bias = declare((hidden,), ("channels",), ZEROS, rngs)
        self.up = declare((hidden, channels), ("channels", "conv_out"), HE_FAN_IN, rngs)
        self.up_bias = declare((channels,), ("channels",), ZEROS, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32 [B, C] -> f32 [B, C]."""
        hidden = jax.nn.relu(x @ self.down[...] + self.down_bias[...])
        return hidden @ self.up[...] + self.up_bias[...]


class SqueezeExcite(Layer):
    """x * sigmoid(W_2 relu(W_1 mean(x))), one number for each image and channel.

    Args:
      channels: C.
      hidden: channels between; C / 16 in the paper.
      rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).
    """

    def __init__(self, channels: int, hidden: int, *, rngs: Rngs = None):
        self.excite = Bottleneck(channels, hidden, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> the same, alike in training and without."""
        check_array("SqueezeExcite", x, "B H W C", "float", C=self.excite.down.shape[0])
        gate = self.excite(jnp.mean(x, (1, 2), dtype=jnp.float32))  # [B, C]
        return x * jax.nn.sigmoid(gate).astype(x.dtype)[:, None, None, :]


def _largest(x: jax.Array, axis: int) -> jax.Array:
    """Maximum along an axis, which stays with size 1.

    Its gradient goes to the entry that argmax named. That of `jnp.max` goes to where x equals the
    maximum, and is 0 / 0 when the compiler computes x twice and rounds it differently.
    """
    index = jnp.argmax(jax.lax.stop_gradient(x), axis, keepdims=True)
    return jnp.take_along_axis(x, index, axis)


class Cbam(Layer):
    """A gate on channels from average and maximum, then a gate on pixels from the same two.

    The spatial gate is a 7x7 convolution of [mean over C, max over C] to one map, normalised.

    Args:
      channels: C.
      hidden: channels between; C / 16 in the paper.
      decay: of the running statistics.
      eps: added to variances.
      dtype: compute type of the convolution.
      rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        decay: float = 0.9,
        eps: float = 1e-5,
        dtype=jnp.float32,
        rngs: Rngs = None,
    ):
        self.excite = Bottleneck(channels, hidden, rngs=rngs)
        self.spatial = Conv(2, 1, 7, in_axis="unit", dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(1, decay=decay, eps=eps, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> the same; `weights` [B] are for the statistics of training."""
        check_array("Cbam", x, "B H W C", "float", C=self.excite.down.shape[0])
        mean = jnp.mean(x, (1, 2), dtype=jnp.float32)  # [B, C]
        pixels = x.reshape(x.shape[0], -1, x.shape[-1])  # [B, HW, C]
        largest = _largest(pixels, 1)[:, 0].astype(jnp.float32)  # [B, C]
        gate = jax.nn.sigmoid(self.excite(mean) + self.excite(largest))
        x = x * gate.astype(x.dtype)[:, None, None, :]
        mean = jnp.mean(x, -1, keepdims=True, dtype=jnp.float32).astype(x.dtype)
        pooled = jnp.concatenate([mean, _largest(x, -1)], -1)  # [B, H, W, 2]
        return x * jax.nn.sigmoid(self.norm(self.spatial(pooled), train=train, weights=weights))


class GatherExcite(Layer):
    """x * sigmoid(mean(x)) without parameters, gathered over the whole map."""

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> the same, alike in training and without."""
        check_array("GatherExcite", x, "B H W C", "float")
        mean = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32)
        return x * jax.nn.sigmoid(mean).astype(x.dtype)


def make_gate(
    kind: str,
    channels: int,
    *,
    ratio: int = 16,
    decay: float = 0.9,
    eps: float = 1e-5,
    dtype=jnp.float32,
    rngs: Rngs = None,
) -> Gate:
    """The gate that ends a residual branch, called as `gate(x, train=...)`.

    Args:
      kind: "se", "cbam" or "gather_excite".
      channels: C.
      ratio: r; between are max(1, C / r) channels.
      decay: of running statistics, where the gate has any.
      eps: added to variances.
      dtype: compute type of convolutions in the gate.
      rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).

    Raises:
      ConfigError: another kind.
    """
    hidden = max(1, channels // ratio)
    if kind == "se":
        return SqueezeExcite(channels, hidden, rngs=rngs)
    if kind == "cbam":
        return Cbam(channels, hidden, decay=decay, eps=eps, dtype=dtype, rngs=rngs)
    if kind == "gather_excite":
        return GatherExcite()
    raise one_of("gate", kind, GATES)
