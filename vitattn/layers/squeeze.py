"""Gates on channels and pixels, which the attention papers compare with.

Letters: B batch, H W map, C channels, r reduction ratio.

Most of them multiply a map [B, H, W, C] by numbers in (0, 1) that come from its averages:
squeeze-and-excitation (Hu et al. 2017, arXiv 1709.01507), the convolutional block attention module
(Woo et al. 2018, arXiv 1807.06521), and gather-excite without parameters over the whole map
(Hu et al. 2018, arXiv 1810.12348). Global-and-local attention (Linsley et al. 2018, arXiv
1805.08819) multiplies by numbers in (-1, 1). The bottleneck attention module (Park et al. 2018,
arXiv 1807.06514) stands between the stages of a network and adds the map itself.
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
from vitattn.layers.init import HE_FAN_IN, HE_NORMAL, ONES, ZEROS
from vitattn.layers.norm import BatchNorm, Weights

Rngs = nnx.Rngs | None
GATES = ("none", "se", "bam", "cbam", "gala", "gather_excite")
BETWEEN_STAGES = ("bam",)  # gates of the maps between stages, not of residual branches
_DILATION = 4  # of the 3x3 convolutions of BAM


class Gate(Protocol):
    """What ends a residual branch, or a stage."""

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


class Gala(Layer):
    """x * tanh(a (g + s) + m g s): g of each channel, s of each pixel, and two mixing weights.

    g is a bottleneck on averages as in squeeze-and-excitation, s = W_2 relu(W_1 x) of every pixel.
    This reading gives the 29.4 million parameters and 8.6 GFLOP that arXiv 1904.09925 prints for
    ResNet-50; a and m start at 1, which is assumed.

    Args:
      channels: C.
      hidden: channels between; C / 16 there.
      dtype: compute type of the products with pixels.
      rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).
    """

    def __init__(self, channels: int, hidden: int, *, dtype=jnp.float32, rngs: Rngs = None):
        self.excite = Bottleneck(channels, hidden, rngs=rngs)
        self.shrink = Conv(channels, hidden, 1, bias_init=ZEROS, dtype=dtype, rngs=rngs)
        self.collapse = Conv(hidden, 1, 1, dtype=dtype, rngs=rngs)
        self.sum_weight = declare((channels,), ("channels",), ONES, rngs)
        self.product_weight = declare((channels,), ("channels",), ONES, rngs)

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> the same, alike in training and without."""
        check_array("Gala", x, "B H W C", "float", C=self.excite.down.shape[0])
        mean = jnp.mean(x, (1, 2), dtype=jnp.float32)
        channel = self.excite(mean).astype(x.dtype)[:, None, None]  # [B, 1, 1, C]
        pixel = self.collapse(jax.nn.relu(self.shrink(x)))  # [B, H, W, 1]
        total, product = (
            weight[...].astype(x.dtype) for weight in (self.sum_weight, self.product_weight)
        )
        return x * jnp.tanh(total * (channel + pixel) + product * channel * pixel)


class Bam(Layer):
    """x * (1 + sigmoid(c + s)): c of each channel, s of each pixel, both normalised.

    c is a bottleneck on averages; s comes from a 1x1 convolution to C / r channels, two 3x3 ones
    with a dilation of 4, and a 1x1 one to one channel. A map smaller than the dilated window sees
    itself and zeros.

    Args:
      channels: C.
      hidden: channels between; C / 16 in the paper.
      decay: of the running statistics.
      eps: added to variances.
      dtype: compute type of the convolutions.
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
        def norm(width: int) -> BatchNorm:
            return BatchNorm(width, decay=decay, eps=eps, rngs=rngs)

        self.excite = Bottleneck(channels, hidden, rngs=rngs)
        self.channel_norm = norm(channels)
        self.reduce = Conv(channels, hidden, 1, dtype=dtype, rngs=rngs)
        self.dilated1 = DilatedConv(hidden, _DILATION, dtype=dtype, rngs=rngs)
        self.dilated2 = DilatedConv(hidden, _DILATION, dtype=dtype, rngs=rngs)
        self.norm1, self.norm2, self.norm3 = norm(hidden), norm(hidden), norm(hidden)
        self.collapse = Conv(hidden, 1, 1, dtype=dtype, rngs=rngs)
        self.pixel_norm = norm(1)

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> the same; `weights` [B] are for the statistics of training."""
        check_array("Bam", x, "B H W C", "float", C=self.excite.down.shape[0])
        options = {"train": train, "weights": weights}
        mean = jnp.mean(x, (1, 2), dtype=jnp.float32)
        channel = self.channel_norm(self.excite(mean)[:, None, None], **options)  # [B, 1, 1, C]
        y = jax.nn.relu(self.norm1(self.reduce(x), **options))
        y = jax.nn.relu(self.norm2(self.dilated1(y), **options))
        y = jax.nn.relu(self.norm3(self.dilated2(y), **options))
        pixel = self.pixel_norm(self.collapse(y), **options)  # [B, H, W, 1]
        return x * (1 + jax.nn.sigmoid(channel.astype(x.dtype) + pixel))


class DilatedConv(Layer):
    """3x3 convolution [B, H, W, C] -> the same shape, whose taps lie `dilation` pixels apart.

    Args:
      channels: C.
      dilation: 1 is a usual convolution.
      dtype: compute type; the kernel is stored in float32.
      rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).
    """

    def __init__(self, channels: int, dilation: int, *, dtype=jnp.float32, rngs: Rngs = None):
        shape, axes = (3, 3, channels, channels), ("height", "width", "conv_in", "conv_out")
        self.kernel = declare(shape, axes, HE_NORMAL, rngs)
        self.dilation, self.dtype = dilation, jnp.dtype(dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] of any float type -> the same shape in `dtype`."""
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            window_strides=(1, 1),
            padding=((self.dilation, self.dilation),) * 2,
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


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
    """The gate that ends a residual branch, or a stage, called as `gate(x, train=...)`.

    Args:
      kind: "se", "bam", "cbam", "gala" or "gather_excite".
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
    if kind == "gala":
        return Gala(channels, hidden, dtype=dtype, rngs=rngs)
    if kind in ("bam", "cbam"):
        module = Bam if kind == "bam" else Cbam
        return module(channels, hidden, decay=decay, eps=eps, dtype=dtype, rngs=rngs)
    if kind == "gather_excite":
        return GatherExcite()
    raise one_of("gate", kind, GATES)
