"""Attention-augmented convolution (arXiv 1904.09925, section 3).

Dimension letters: B batch, H W map, N heads, d e key and value width a head.

    AAConv(X) = concat_channels[ Conv_kxk(X; F_out - d_v filters), MHA(X; d_v) ]
    MHA(X)    = concat_heads(softmax((Q K^T + S_H + S_W) / sqrt(d)) V) W_O

The scale covers the relative terms S_H and S_W too. Their tables are shared by the heads, not by
the layers, and are tied to the size of the map. No weight has a bias: batch normalisation follows.
On a high-resolution map attention runs at half resolution: 3x3/2 average pool of its input,
bilinear upsampling of its output. In a strided layer it sees the pooled input, so that it runs at
the resolution of the output.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import ConfigError, one_of
from trainlib.model.weights import declare
from vitattn.layers.attend import attention_weights
from vitattn.layers.conv import Conv, pointwise
from vitattn.layers.pool import average_pool, bilinear_resize
from vitattn.layers.position import coordinates, sine_positions, table_init
from vitattn.layers.relative import position_bias, relative_attention_2d, relative_index

Array = jax.Array

LECUN_NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
POSITIONS = ("relative", "none", "sine", "coord")


def augmented_depths(
    out_channels: int, kappa: float, upsilon: float, num_heads: int, min_key_depth: int = 20
) -> tuple[int, int]:
    """Total key and value depth (d_k, d_v) of an augmented layer.

    d_k = max(floor(kappa F_out / N) N, min_key_depth N), d_v = floor(upsilon F_out / N) N: the
    reading that reproduces the parameter counts of the paper's tables.

    Args:
      out_channels: width F_out of the convolution that is replaced.
      kappa: d_k / F_out.
      upsilon: d_v / F_out.
      num_heads: N.
      min_key_depth: least key depth of one head; 0 for none.

    Raises:
      ConfigError: when a depth comes out as 0, or d_v is more than F_out.
    """
    if num_heads < 1:
        raise ConfigError(
            f"num_heads={num_heads} is not a number of attention heads; use 1 or more."
        )

    def floored(fraction: float) -> int:
        # The small term keeps products such as 0.29 * 100 on their side of the integer.
        return math.floor(fraction * out_channels / num_heads + 1e-9) * num_heads

    key_depth = max(floored(kappa), min_key_depth * num_heads)
    value_depth = floored(upsilon)
    for name, value, depth in (("kappa", kappa, key_depth), ("upsilon", upsilon, value_depth)):
        if depth < 1 or (name == "upsilon" and depth > out_channels):
            raise ConfigError(
                f"{name}={value} of {out_channels} channels with num_heads={num_heads} gives an "
                f"attention depth of {depth}. It must be at least one channel a head, and values "
                f"at most all channels: choose {name} between {num_heads / out_channels:.4g} and "
                "1, or fewer heads."
            )
    return key_depth, value_depth


class AugmentedConv(nnx.Module):
    """A convolution of which `value_depth` output channels come from global self-attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        num_heads: int,
        key_depth: int,
        value_depth: int,
        height: int,
        width: int,
        stride: int = 1,
        downsample: bool = False,
        position: str = "relative",
        dtype=jnp.float32,
    ):
        """Declares the weights.

        Args:
          in_channels: F_in.
          out_channels: F_out; with value_depth == out_channels there is no convolution at all.
          kernel_size: odd size of the convolution.
          num_heads: N.
          key_depth: d_k over all heads, a multiple of heads (see `augmented_depths`).
          value_depth: d_v over all heads, a multiple of heads, at most out_channels.
          height: rows of the OUTPUT map; the input has `stride` times as many.
          width: columns of the output map.
          stride: 1 or 2.
          downsample: attend at half of the output's resolution.
          position: "relative", "none", "sine" (added to the attention's input) or "coord"
            (concatenated to it).
          dtype: type of the computation; weights are float32.

        Raises:
          ConfigError: depths that heads do not divide, or a value outside the lists above.
        """
        _check(out_channels, kernel_size, num_heads, key_depth, value_depth, stride, position)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.downsample = kernel_size, stride, downsample
        self.num_heads, self.key_depth, self.value_depth = num_heads, key_depth, value_depth
        self.height, self.width, self.position, self.dtype = height, width, position, dtype
        conv_width = out_channels - value_depth
        if conv_width:
            self.conv = Conv(in_channels, conv_width, kernel_size, stride, dtype=dtype)
        qkv_width = 2 * key_depth + value_depth
        # The odd width with two coordinates, and d_v, would not divide over a mesh: not split.
        qkv_shape, qkv_axis = (in_channels, qkv_width), "conv_in"
        if position == "coord":
            qkv_shape, qkv_axis = (in_channels + 2, qkv_width), "channels"
        self.qkv = declare(qkv_shape, (qkv_axis, "conv_out"), LECUN_NORMAL)
        self.out = declare((value_depth, value_depth), ("channels", "conv_out"), LECUN_NORMAL)
        if position == "relative":
            rows, cols = self.attention_size
            depth, axes = key_depth // num_heads, ("offset", "head_dim")
            self.rel_h = declare((2 * rows - 1, depth), axes, table_init)
            self.rel_w = declare((2 * cols - 1, depth), axes, table_init)

    @property
    def attention_size(self) -> tuple[int, int]:
        """Rows and columns of the map on which attention runs."""
        factor = 2 if self.downsample else 1
        return -(-self.height // factor), -(-self.width // factor)

    def __call__(self, x: Array) -> Array:
        """[B, H*stride, W*stride, F_in] -> [B, H, W, F_out], in `dtype`.

        Raises:
          ConfigError: when x is not of the size that the layer was built for.
        """
        self._check_input(x)
        x = x.astype(self.dtype)
        attended = self._attend(x)
        if self.value_depth == self.out_channels:
            return attended
        return jnp.concatenate([self.conv(x), attended], -1)

    def attention_maps(self, x: Array) -> Array:
        """Probabilities [B, N, H', W', H', W'] (query, then key): for pictures only."""
        self._check_input(x)
        q, k, _ = self._project(x.astype(self.dtype))
        batch, heads, rows, cols, depth = q.shape
        bias = ()
        if self.position == "relative":
            tables = self.rel_h[...][relative_index(rows)], self.rel_w[...][relative_index(cols)]
            bias = jax.vmap(position_bias, (0, None, None))(q, *tables)
        flat = (batch, heads, rows * cols, depth)
        weights = attention_weights(q.reshape(flat), k.reshape(flat), *bias)
        return weights.reshape(batch, heads, rows, cols, rows, cols)

    def _project(self, x: Array) -> tuple[Array, Array, Array]:
        """Scaled queries, keys and values [B, N, H', W', .] at the attention's resolution."""
        for _ in range((self.stride == 2) + self.downsample):
            x = average_pool(x)
        rows, cols = self.attention_size
        if self.position == "sine":
            x = x + sine_positions(rows, cols, self.in_channels).astype(self.dtype)
        elif self.position == "coord":
            place = coordinates(rows, cols).astype(self.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(place, (*x.shape[:3], 2))], -1)
        qkv = pointwise(x, self.qkv[...].astype(self.dtype))
        parts = jnp.split(qkv, (self.key_depth, 2 * self.key_depth), axis=-1)
        q, k, v = (
            part.reshape(x.shape[0], rows, cols, self.num_heads, -1).transpose(0, 3, 1, 2, 4)
            for part in parts
        )
        return q * jnp.asarray((self.key_depth // self.num_heads) ** -0.5, self.dtype), k, v

    def _attend(self, x: Array) -> Array:
        q, k, v = self._project(x)
        tables = (self.rel_h[...], self.rel_w[...]) if self.position == "relative" else ()
        per_head = relative_attention_2d(q, k, v, *tables)
        joined = per_head.transpose(0, 2, 3, 1, 4).reshape(*x.shape[:1], *self.attention_size, -1)
        out = pointwise(joined, self.out[...].astype(self.dtype))
        return bilinear_resize(out, self.height, self.width)

    def _check_input(self, x: Array) -> None:
        sizes = [-(-size // self.stride) for size in x.shape[1:3]]
        if x.shape[-1] != self.in_channels or sizes != [self.height, self.width]:
            raise ConfigError(
                "An attention-augmented convolution built for an input of "
                f"{self.height * self.stride} x {self.width * self.stride} x {self.in_channels} "
                f"(it is tied to the size of the map) got {' x '.join(map(str, x.shape[1:]))}. "
                "Build the model for the size of the images that it is given."
            )


def _check(
    out_channels: int,
    kernel_size: int,
    num_heads: int,
    key_depth: int,
    value_depth: int,
    stride: int,
    position: str,
) -> None:
    if position not in POSITIONS:
        raise one_of("position", position, POSITIONS)
    if stride not in (1, 2) or kernel_size % 2 == 0:
        raise ConfigError(
            f"stride={stride} and kernel_size={kernel_size} in an attention-augmented "
            "convolution: the stride is 1 or 2, the kernel size is odd."
        )
    for name, depth in (("key_depth", key_depth), ("value_depth", value_depth)):
        if num_heads < 1 or depth < 1 or depth % num_heads:
            raise ConfigError(
                f"num_heads={num_heads} does not divide {name}={depth} of an "
                "attention-augmented convolution. Each head has an equal, positive share: change "
                "the number of heads or the depth."
            )
    if value_depth > out_channels:
        raise ConfigError(
            f"value_depth={value_depth} of an attention-augmented convolution is more than its "
            f"out_channels={out_channels}. At most all output channels can come from attention."
        )
