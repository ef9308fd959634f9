"""Attention-augmented convolution (arXiv 1904.09925, section 3).

Dimension letters: B batch, H W map, N heads, d e key and value width a head.

    AAConv(X) = concat_channels[ Conv_kxk(X; F_out - d_v filters), MHA(X; d_v) ]
    MHA(X)    = concat_heads(softmax((Q K^T + S_H + S_W) / sqrt(d)) V) W_O

The scale covers the relative terms S_H and S_W too. Their tables are shared by the heads, not by
the layers, and are tied to the size of the map. No weight has a bias: batch normalisation follows.
On a high-resolution map attention runs at half resolution: 3x3/2 average pool of its input,
bilinear upsampling of its output. In a strided layer it sees the pooled input, so that it runs at
the resolution of the output.

    layer = AugmentedConv(16, 32, 3, num_heads=2, size=14, rngs=nnx.Rngs(0))
    y = layer(x)  # [B, 14, 14, 16] -> [B, 14, 14, 32]
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import ConfigError, InputError, one_of
from trainlib.keys import whole
from trainlib.model.inputs import check_array
from trainlib.model.weights import declare
from vitattn.images.size import Size, sides, strided
from vitattn.kernels.augmented import augmented_half
from vitattn.kernels.relative import relative_attention_2d, relative_attention_maps
from vitattn.layers.attention import (
    AnyPosition,
    AttentionLayer,
    Fraction,
    Heads,
    Pair,
    Site,
    Stages,
)
from vitattn.layers.conv import Conv, pointwise
from vitattn.layers.init import LECUN_NORMAL
from vitattn.layers.pool import average_pool, bilinear_resize
from vitattn.layers.position import coordinates, sine_positions, table_init

Array = jax.Array

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


@dataclasses.dataclass(frozen=True)
class AugmentedConfig:
    """Attention-augmented convolution, arXiv 1904.09925.

    Attributes:
      kappa: key depth over the width of the replaced convolution.
      upsilon: value depth over that width; 1 leaves no convolution.
      num_heads: attention heads.
      min_key_depth: least key depth of one head; 0 for none.
      stages: stages that are augmented: N of conv`N`_x; in a MnasNet, those at 1/2^N of the image.
      downsample: stages whose attention runs at half the resolution of their maps.
      position: "relative", "none", "sine" or "coord".
    """

    kind: ClassVar[str] = "augmented"
    every_layer: ClassVar[bool] = False

    kappa: Fraction = 0.2
    upsilon: Fraction = 0.1
    num_heads: Heads = 8
    min_key_depth: Annotated[int, whole(0)] = 20
    stages: Stages = (3, 4, 5)
    downsample: Stages = (3,)
    position: AnyPosition = "relative"

    def layer(
        self,
        in_channels: int,
        out_channels: int,
        site: Site,
        *,
        kernel_size: int = 3,
        dtype: str = "float32",
        rngs: nnx.Rngs | None = None,
    ) -> AugmentedConv:
        """The layer at a site of a network; see `vitattn.layers.attention.AttentionConfig`."""
        return AugmentedConv(
            in_channels,
            out_channels,
            kernel_size,
            num_heads=self.num_heads,
            kappa=self.kappa,
            upsilon=self.upsilon,
            min_key_depth=self.min_key_depth,
            size=(site.height, site.width),
            stride=site.stride,
            downsample=site.stage in self.downsample,
            position=self.position,
            dtype=dtype,
            rngs=rngs,
        )


class AugmentedConv(AttentionLayer):
    """A convolution of which some output channels come from global self-attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        num_heads: int = 8,
        kappa: float = 0.25,
        upsilon: float = 0.25,
        min_key_depth: int = 20,
        key_depth: int | None = None,
        value_depth: int | None = None,
        size: Size | None = None,
        stride: int = 1,
        downsample: bool = False,
        position: str | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        """Declares the weights.

        Args:
          in_channels: F_in.
          out_channels: F_out; with value_depth == out_channels there is no convolution at all.
          kernel_size: odd size of the convolution.
          num_heads: N.
          kappa: d_k over F_out, see `augmented_depths`.
          upsilon: d_v over F_out.
          min_key_depth: least key depth of one head.
          key_depth: d_k over all heads, a multiple of num_heads; None follows from kappa.
          value_depth: d_v over all heads, a multiple of num_heads; None follows from upsilon.
          size: H, W of the OUTPUT map, or one number for a square; relative positions are tied to
            it. None: maps of any size, without relative positions.
          stride: 1 or 2.
          downsample: attend at half of the output's resolution.
          position: "relative", "none", "sine" (added to the attention's input) or "coord"
            (concatenated to it). None is "relative" where `size` is given, else "none".
          dtype: type of the computation; weights are float32.
          rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).

        Raises:
          ConfigError: depths that heads do not divide, or a value outside the lists above.
        """
        if key_depth is None or value_depth is None:
            depths = augmented_depths(out_channels, kappa, upsilon, num_heads, min_key_depth)
            key_depth = depths[0] if key_depth is None else key_depth
            value_depth = depths[1] if value_depth is None else value_depth
        if position is None:
            position = "none" if size is None else "relative"
        _check(out_channels, kernel_size, num_heads, key_depth, value_depth, stride, position)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.downsample = kernel_size, stride, downsample
        self.num_heads, self.key_depth, self.value_depth = num_heads, key_depth, value_depth
        self.size = None if size is None else sides(size)
        self.position, self.dtype = position, dtype
        conv_width = out_channels - value_depth
        if conv_width:
            self.conv = Conv(in_channels, conv_width, kernel_size, stride, dtype=dtype, rngs=rngs)
        qkv_width = 2 * key_depth + value_depth
        # The odd width with two coordinates, and d_v, would not divide over a mesh: not split.
        qkv_shape, qkv_axis = (in_channels, qkv_width), "conv_in"
        if position == "coord":
            qkv_shape, qkv_axis = (in_channels + 2, qkv_width), "channels"
        self.qkv = declare(qkv_shape, (qkv_axis, "conv_out"), LECUN_NORMAL, rngs)
        self.out = declare((value_depth, value_depth), ("channels", "conv_out"), LECUN_NORMAL, rngs)
        if position == "relative":
            if self.size is None:
                raise ConfigError(
                    "Relative positions of an attention-augmented convolution are tied to the size "
                    "of its map: give size=(height, width) of the output, or another position."
                )
            rows, cols = self._halved(self.size)
            depth, axes = key_depth // num_heads, ("offset", "head_dim")
            self.rel_h = declare((2 * rows - 1, depth), axes, table_init, rngs)
            self.rel_w = declare((2 * cols - 1, depth), axes, table_init, rngs)

    def _output_size(self, x: Array) -> Pair:
        return strided(x.shape[1], self.stride), strided(x.shape[2], self.stride)

    def _halved(self, size: Pair) -> Pair:
        factor = 2 if self.downsample else 1
        return strided(size[0], factor), strided(size[1], factor)

    @property
    def attention_size(self) -> Pair | None:
        """H', W' of the map on which attention runs; None for a layer of any size."""
        return None if self.size is None else self._halved(self.size)

    def map_size(self, x: Array) -> Pair:
        """H', W' of the map on which attention runs, for the input x [B, H, W, F_in]."""
        return self._halved(self._output_size(x))

    def __call__(self, x: Array) -> Array:
        """[B, H*stride, W*stride, F_in] -> [B, H, W, F_out], in `dtype`.

        Raises:
          InputError: when x is not of the size that the layer was built for.
        """
        self._check_input(x)
        self.offer(x)
        x = x.astype(self.dtype)
        attended = self._attend(x)
        if self.value_depth == self.out_channels:
            return attended
        return jnp.concatenate([self.conv(x), attended], -1)

    def attention_maps(self, x: Array) -> Array:
        """Probabilities f32 [B, N, H', W', H', W'] (query, then key): for pictures only."""
        self._check_input(x)
        q, k, _ = self._project(self._placed(x.astype(self.dtype)))
        return relative_attention_maps(q, k, *self._tables())

    def query_map(self, x: Array, query: Pair) -> Array:
        """Probabilities f32 [B, N, H', W'] of the keys of one query; see `AttentionLayer`."""
        return self.attention_maps(x)[:, :, query[0], query[1]].astype(jnp.float32)

    def _placed(self, x: Array) -> Array:
        """The map [B, H', W', .] that attention runs on, with absolute positions if it has them."""
        rows, cols = self.map_size(x)
        for _ in range((self.stride == 2) + self.downsample):
            x = average_pool(x)  # [B, H', W', F_in] after the last
        if self.position == "sine":
            x = x + sine_positions(rows, cols, self.in_channels).astype(self.dtype)
        elif self.position == "coord":
            grid = coordinates(rows, cols).astype(self.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(grid, (*x.shape[:3], 2))], -1)
        return x

    def _project(self, x: Array) -> tuple[Array, Array, Array]:
        """The map of `_placed` -> queries, keys and values [B, H', W', N, .]."""
        qkv = pointwise(x, self.qkv[...].astype(self.dtype))  # [B, H', W', 2 d_k + d_v]
        parts = jnp.split(qkv, (self.key_depth, 2 * self.key_depth), axis=-1)
        q, k, v = (part.reshape(*x.shape[:3], self.num_heads, -1) for part in parts)
        return q, k, v

    def _tables(self) -> tuple[Array, ...]:
        return (self.rel_h[...], self.rel_w[...]) if self.position == "relative" else ()

    def _attend(self, x: Array) -> Array:
        """[B, H*stride, W*stride, F_in] -> [B, H, W, d_v]."""
        size, x = self._output_size(x), self._placed(x)
        weights = self.qkv[...], self.out[...], self._tables()
        with jax.named_scope("attend"):
            out = augmented_half(x, *weights, num_heads=self.num_heads)
        if out is None:
            projected = self._project(x)
            with jax.named_scope("attend"):
                per_head = relative_attention_2d(*projected, *self._tables())  # [B, H', W', N, .]
            joined = per_head.reshape(*per_head.shape[:3], -1)  # [B, H', W', d_v]
            out = pointwise(joined, self.out[...].astype(self.dtype))
        return bilinear_resize(out, *size)

    def _check_input(self, x: Array) -> None:
        check_array("An attention-augmented convolution", x, "B H W C", C=self.in_channels)
        if self.size is not None and self._output_size(x) != self.size:
            got = " x ".join(map(str, x.shape[1:]))
            height, width = (side * self.stride for side in self.size)
            raise InputError(
                "An attention-augmented convolution built for an input of "
                f"{height} x {width} x {self.in_channels} (it is tied to the size of the map) got "
                f"{got}. Build the model for the size of the images that it is given."
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
