"""Layers of local and halo attention in place of a spatial convolution.

Dimension letters: B batch, H W map, C channels of the input, F of the output, N heads, d width a
head, s stride.

Stand-alone self-attention (arXiv 1906.05909) and its block form (arXiv 2103.12731); what they
compute stands in `vitattn.kernels.local`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import ConfigError, one_of
from trainlib.keys import whole
from trainlib.model.inputs import check_array
from trainlib.model.weights import Initializer, declare
from vitattn.kernels.local import (
    HALO_BLOCK,
    halo_attention,
    local_attention,
    projected_by_rows,
    projected_local_attention,
    projections_are_packed,
)
from vitattn.kernels.query_map import KeyAxis, block_axis, query_map, window_axis
from vitattn.layers.attention import AttentionLayer, Heads, Pair, Position, Site, Stages
from vitattn.layers.conv import pointwise
from vitattn.layers.init import LECUN_NORMAL
from vitattn.layers.pool import average_pool
from vitattn.layers.position import sine_positions, table_init

Array = jax.Array

POSITIONS = ("relative", "none", "sine")


@dataclasses.dataclass(frozen=True)
class LocalConfig:
    """Stand-alone self-attention in a window around each pixel, arXiv 1906.05909.

    Attributes:
      num_heads: attention heads.
      window: odd side of the window.
      stages: stages whose 3x3 convolutions are replaced (2 is conv2_x).
      position: "relative", "none" or "sine".
      position_only: logits of queries and relative positions alone, without keys.
      mask_border: leaves pixels outside the map out of the softmax; the paper counts them.
    """

    kind: ClassVar[str] = "local"
    every_layer: ClassVar[bool] = True

    num_heads: Heads = 8
    window: Annotated[int, whole(1, 1023)] = 7
    stages: Stages = (2, 3, 4, 5)
    position: Position = "relative"
    position_only: bool = False
    mask_border: bool = False

    def layer(
        self,
        in_channels: int,
        out_channels: int,
        site: Site,
        *,
        kernel_size: int = 3,
        dtype: str = "float32",
        rngs: nnx.Rngs | None = None,
    ) -> LocalAttention:
        """The layer at a site of a network; see `vitattn.layers.attention.AttentionConfig`."""
        return LocalAttention(
            in_channels,
            out_channels,
            num_heads=self.num_heads,
            window=self.window,
            stride=site.stride,
            position=self.position,
            position_only=self.position_only,
            mask_border=self.mask_border,
            dtype=dtype,
            rngs=rngs,
        )


@dataclasses.dataclass(frozen=True)
class HaloConfig:
    """Attention of blocks to themselves and a halo, arXiv 2103.12731, in place of `LocalConfig`.

    Attributes:
      num_heads: attention heads.
      block: side of a block of queries.
      halo: pixels around the block that it also attends to; 0 for separate blocks.
      stages: stages whose 3x3 convolutions are replaced.
      position: "relative", "none" or "sine".
      mask_border: leaves pixels outside the map out of the softmax.
    """

    kind: ClassVar[str] = "halo"
    every_layer: ClassVar[bool] = True

    num_heads: Heads = 8
    block: Annotated[int, whole(1, 1024)] = HALO_BLOCK
    halo: Annotated[int, whole(0, 1024)] = 3
    stages: Stages = (2, 3, 4, 5)
    position: Position = "relative"
    mask_border: bool = True

    def layer(
        self,
        in_channels: int,
        out_channels: int,
        site: Site,
        *,
        kernel_size: int = 3,
        dtype: str = "float32",
        rngs: nnx.Rngs | None = None,
    ) -> HaloAttention:
        """The layer at a site of a network; see `vitattn.layers.attention.AttentionConfig`."""
        return HaloAttention(
            in_channels,
            out_channels,
            num_heads=self.num_heads,
            block=self.block,
            halo=self.halo,
            stride=site.stride,
            position=self.position,
            mask_border=self.mask_border,
            dtype=dtype,
            rngs=rngs,
        )


class BlockAttention(AttentionLayer):
    """What local and halo attention share: [B, H, W, C] -> [B, ceil(H/s), ceil(W/s), F].

    One dense projection to queries, keys and values, heads that share their relative tables, no
    scale, no projection of the output; with a stride of 2, a 2x2 average pool after the attention
    (arXiv 1906.05909, the reading that reproduces its parameter and FLOP counts).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_heads: int,
        stride: int,
        position: str,
        position_only: bool,
        mask_border: bool,
        offsets: int,
        dtype: Any,
        rngs: nnx.Rngs | None,
        init: Initializer = LECUN_NORMAL,
    ):
        """Declares the weights; `offsets` is the number of entries of a relative table."""
        _check(out_channels, num_heads, stride, position)
        self.num_heads, self.stride, self.position = num_heads, stride, position
        self.position_only, self.mask_border = position_only, mask_border
        self.out_channels, self.dtype = out_channels, dtype
        qkv_shape = (in_channels, (2 if position_only else 3) * out_channels)
        self.qkv = declare(qkv_shape, ("conv_in", "conv_out"), init, rngs)
        if position == "relative":
            depth = out_channels // num_heads
            axes = ("offset", "head_dim")
            self.rel_row = declare((offsets, depth // 2), axes, table_init, rngs)
            self.rel_col = declare((offsets, depth - depth // 2), axes, table_init, rngs)

    def __call__(self, x: Array) -> Array:
        """Any map size; the result is in `dtype`."""
        channels = self.qkv.shape[0]
        check_array("A layer of local or halo attention", x, "B H W C", C=channels)
        self.offer(x)
        out = self._attended(x.astype(self.dtype))  # [B, H, W, F]
        return out if self.stride == 1 else _halve(out)

    def _attended(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, F] before the stride."""
        projected = self._project(self._placed(x))
        with jax.named_scope("attend"):
            out = self._attend(*projected)  # [B, H, W, N, d]
        return out.reshape(*x.shape[:3], self.out_channels)

    def query_map(self, x: Array, query: Pair) -> Array:
        """Probabilities f32 [B, N, H, W] of the keys of one query; see `AttentionLayer`."""
        q, k, _ = self._project(self._placed(x.astype(self.dtype)))
        size = self.map_size(x)
        rows, cols = (self._key_axis(at, n) for at, n in zip(query, size, strict=True))
        q = q[:, query[0], query[1]]  # [B, N, d]
        return query_map(q, k, self._tables(), rows, cols, size, mask_border=self.mask_border)

    def _attend(self, q: Array, k: Array | None, v: Array) -> Array:
        raise NotImplementedError

    def _key_axis(self, query: int, size: int) -> KeyAxis:
        raise NotImplementedError

    def _tables(self) -> tuple[Array, ...]:
        return (self.rel_row[...], self.rel_col[...]) if self.position == "relative" else ()

    def _placed(self, x: Array) -> Array:
        """x [B, H, W, C] with the sines of its positions, where positions are given by these."""
        if self.position != "sine":
            return x
        return x + sine_positions(*x.shape[1:]).astype(self.dtype)

    def _project(self, x: Array) -> tuple[Array, Array | None, Array]:
        """x [B, H, W, C] -> queries, keys (None without any) and values [B, H, W, N, d]."""
        qkv = pointwise(x, self.qkv[...].astype(self.dtype))  # [B, H, W, 3F]
        qkv = qkv.reshape(*x.shape[:3], -1, self.num_heads, self.out_channels // self.num_heads)
        q, v = qkv[:, :, :, 0], qkv[:, :, :, -1]
        return q, None if self.position_only else qkv[:, :, :, 1], v


class LocalAttention(BlockAttention):
    """Attention of each pixel to the window around it, in place of a spatial convolution: [B, H, W,
    C] -> [B, ceil(H/s), ceil(W/s), F] (stand-alone self-attention, arXiv 1906.05909, section 3).

    One projection to queries, keys and values, no scale, no projection of the output, relative
    tables that the heads share; with a stride of 2, a 2x2 average pool after the attention.

        layer = LocalAttention(16, 32, num_heads=4, window=7, rngs=nnx.Rngs(0))
        y = layer(x)  # [B, H, W, 16] -> [B, H, W, 32]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_heads: int = 8,
        window: int = 7,
        stride: int = 1,
        position: str = "relative",
        position_only: bool = False,
        mask_border: bool = False,
        init: Initializer = LECUN_NORMAL,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        """Declares the weights.

        Args:
          in_channels: C.
          out_channels: F, divided among the heads.
          num_heads: N.
          window: odd size of the window.
          stride: 1 or 2.
          position: "relative", "none", or "sine" (absolute, added to the input).
          position_only: logits are q.r alone, without keys; needs relative positions.
          mask_border: leaves pixels outside the map out of the softmax; the paper counts them.
          init: initialiser of the projection [C, 3F] to queries, keys and values.
          dtype: type of the computation and the result; weights are float32.
          rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).

        Raises:
          ConfigError: a value outside these lists, or heads that do not divide out_channels.
        """
        if window < 1 or window % 2 == 0:
            raise ConfigError(
                f"window={window} in a local attention layer has no centre: use an odd number of "
                "pixels."
            )
        if position_only and position != "relative":
            raise ConfigError(
                f"Attention without keys needs position='relative', not {position!r}: nothing "
                "would be left of its logits."
            )
        super().__init__(
            in_channels,
            out_channels,
            num_heads=num_heads,
            stride=stride,
            position=position,
            position_only=position_only,
            mask_border=mask_border,
            offsets=window,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.window = window

    def _attended(self, x: Array) -> Array:
        depth = self.out_channels // self.num_heads
        shape = (*x.shape[:3], self.num_heads, depth)
        known = {"keys": not self.position_only, "position": self.position == "relative"}
        channels = x.shape[-1]
        kernel = self.qkv[...].astype(self.dtype)
        if not projections_are_packed(shape, x.dtype, self.window, channels=channels, **known):
            sizes = {"heads": self.num_heads, "depth": depth, "window": self.window}
            out = None
            if not self.mask_border:
                with jax.named_scope("attend"):
                    out = projected_by_rows(self._placed(x), kernel, self._tables(), **sizes)
            return super()._attended(x) if out is None else out
        with jax.named_scope("attend"):
            return projected_local_attention(
                self._placed(x),
                jnp.split(kernel, kernel.shape[1] // self.out_channels, axis=1),
                self._tables(),
                heads=self.num_heads,
                window=self.window,
                mask_border=self.mask_border,
            )

    def _attend(self, q: Array, k: Array | None, v: Array) -> Array:
        options: dict[str, Any] = {"window": self.window, "mask_border": self.mask_border}
        return local_attention(q, k, v, *self._tables(), scale=1.0, **options)

    def _key_axis(self, query: int, size: int) -> KeyAxis:
        return window_axis(query, size, self.window)


class HaloAttention(BlockAttention):
    """Attention of blocks of pixels to themselves and a halo, in place of a spatial convolution:
    [B, H, W, C] -> [B, ceil(H/s), ceil(W/s), F] (arXiv 2103.12731, section 3).

    Projections, tables and stride as in `LocalAttention`.

        layer = HaloAttention(16, 32, num_heads=4, block=7, halo=3, rngs=nnx.Rngs(0))
        y = layer(x)  # [B, H, W, 16] -> [B, H, W, 32]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_heads: int = 8,
        block: int = HALO_BLOCK,
        halo: int = 3,
        stride: int = 1,
        position: str = "relative",
        mask_border: bool = True,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        """Declares the weights.

        Args:
          in_channels: C.
          out_channels: F, divided among the heads.
          num_heads: N.
          block: side of a block of queries.
          halo: pixels around the block that it also attends to; 0 for separate blocks.
          stride: 1 or 2.
          position: "relative", "none", or "sine" (absolute, added to the input).
          mask_border: leaves pixels outside the map out of the softmax.
          dtype: type of the computation and the result; weights are float32.
          rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).

        Raises:
          ConfigError: a value outside these lists, or heads that do not divide out_channels.
        """
        if block < 1 or halo < 0:
            raise ConfigError(
                f"block={block}, halo={halo} in a halo attention layer: a block has at least one "
                "pixel, and a halo is not negative."
            )
        super().__init__(
            in_channels,
            out_channels,
            num_heads=num_heads,
            stride=stride,
            position=position,
            position_only=False,
            mask_border=mask_border,
            offsets=2 * (block + halo) - 1,
            dtype=dtype,
            rngs=rngs,
        )
        self.block, self.halo = block, halo

    def _attend(self, q: Array, k: Array | None, v: Array) -> Array:
        options: dict[str, Any] = {"block": self.block, "halo": self.halo}
        options["mask_border"] = self.mask_border
        return halo_attention(q, k, v, *self._tables(), scale=1.0, **options)

    def _key_axis(self, query: int, size: int) -> KeyAxis:
        return block_axis(query, size, self.block, self.halo)


def _halve(x: Array) -> Array:
    """2x2 average pool; the last window of an odd size averages the pixels that exist."""
    odd = [(0, 0), *((0, size % 2) for size in x.shape[1:3]), (0, 0)]
    return average_pool(jnp.pad(x, odd, mode="edge"), 2, 2)


def _check(out_channels: int, num_heads: int, stride: int, position: str) -> None:
    if position not in POSITIONS:
        raise one_of("position", position, POSITIONS)
    if stride not in (1, 2):
        raise ConfigError(f"stride={stride} in a local attention layer: the stride is 1 or 2.")
    if num_heads < 1 or out_channels % num_heads:
        raise ConfigError(
            f"num_heads={num_heads} does not divide the {out_channels} channels of a local "
            "attention layer. Change the number of heads or the width."
        )
    if position == "relative" and out_channels // num_heads < 2:
        raise ConfigError(
            f"num_heads={num_heads} leaves {out_channels // num_heads} channel a head of "
            f"{out_channels}. Relative positions need at least 2, one for rows and one for "
            "columns: use fewer heads."
        )
