"""Residual networks and their attention-augmented versions, as data.

Letters: B batch, H W image, C channels.

The base is ResNet (He et al. 2015, arXiv 1512.03385) in its "v1.5" form, with the stride in the
3x3 convolution: the form whose 8.2 GFLOP both attention papers print. Attention augmentation
(arXiv 1904.09925) replaces the 3x3 convolution of a bottleneck, or the first one of a basic block,
in the last stages. Stages have the paper's names: conv2_x .. conv5_x run at 1/4, 1/8, 1/16 and
1/32 of the image.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import ConfigError, one_of
from vitattn.layers.augmented import AugmentedConv, augmented_depths
from vitattn.layers.conv import Classifier, Conv
from vitattn.layers.norm import ONES, ZEROS, BatchNorm
from vitattn.layers.pool import global_average_pool, max_pool

STAGES = (2, 3, 4, 5)  # conv2_x .. conv5_x
STAGE_WIDTHS = (64, 128, 256, 512)

# depth -> (bottleneck, blocks of conv2_x .. conv5_x). 26 and 38 take two and one block a stage
# from 50 (arXiv 1906.05909, section 4.1).
DEPTHS = {
    18: (False, (2, 2, 2, 2)),
    26: (True, (1, 2, 4, 1)),
    34: (False, (3, 4, 6, 3)),
    38: (True, (2, 3, 5, 2)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}
STEMS = ("conv", "small_image")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class AugmentedConfig:
    """Attention-augmented convolution, arXiv 1904.09925.

    Attributes:
      kappa: key depth over the width of the replaced convolution.
      upsilon: value depth over that width; 1 leaves no convolution.
      heads: attention heads.
      min_key_depth: least key depth of one head; 0 for none.
      stages: stages that are augmented (5 is conv5_x).
      downsample: stages whose attention runs at half the resolution of their maps.
      position: "relative", or one of the ablation's encodings of `vitattn.layers.augmented`.
    """

    kind: ClassVar[str] = "augmented"

    kappa: float = 0.2
    upsilon: float = 0.1
    heads: int = 8
    min_key_depth: int = 20
    stages: tuple[int, ...] = (3, 4, 5)
    downsample: tuple[int, ...] = (3,)
    position: str = "relative"


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Everything that defines a residual network.

    Attributes:
      depth: a key of `DEPTHS`.
      blocks: blocks of each stage; empty takes those of `depth`.
      width: multiplier of every width, stem included.
      num_classes: logits.
      image_size: pixels of the (square) image, or (height, width): relative positions depend on
        it.
      stem: "conv" (7x7 stride 2, then 3x3 max pool) or "small_image" (3x3, no pool: CIFAR,
        digits).
      zero_init: residual branches start as nothing (scale of their last normalisation is 0), as in
        the public TPU recipe.
      attention: None for plain convolutions.
      dtype: compute type, "float32" or "bfloat16".
      bn_decay: of running statistics.
      bn_eps: added to variances.
    """

    depth: int = 50
    blocks: tuple[int, ...] = ()
    width: float = 1.0
    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    stem: str = "conv"
    zero_init: bool = True
    attention: AugmentedConfig | None = None
    dtype: str = "float32"
    bn_decay: float = 0.9
    bn_eps: float = 1e-5

    def __post_init__(self):
        if self.depth not in DEPTHS:
            raise one_of("model.depth", self.depth, map(str, DEPTHS))
        if self.stem not in STEMS:
            raise one_of("model.stem", self.stem, STEMS)
        if self.dtype not in DTYPES:
            raise one_of("model.dtype", self.dtype, DTYPES)
        if self.channels(STAGE_WIDTHS[0]) < 1:
            raise ConfigError(f"model.width={self.width} leaves no channel in conv2_x.")
        if self.blocks and (len(self.blocks) != len(STAGES) or min(self.blocks) < 1):
            raise ConfigError(
                f"model.blocks is {self.blocks}: give four numbers of blocks, each at least 1, "
                f"or an empty tuple for those of depth {self.depth}, {DEPTHS[self.depth][1]}."
            )

        for key in ("stages", "downsample"):
            chosen = getattr(self.attention, key, ())
            if not set(chosen) <= set(STAGES):
                raise ConfigError(
                    f"model.attention.{key} is {chosen}: stages are 2 to 5, for conv2_x to conv5_x."
                )

    @property
    def bottleneck(self) -> bool:
        """Whether blocks are 1x1, 3x3, 1x1 (else 3x3, 3x3)."""
        return DEPTHS[self.depth][0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def channels(self, base: int) -> int:
        """A width scaled by the multiplier."""
        return round(base * self.width)

    def norm(self, channels: int, *, last: bool = False) -> BatchNorm:
        """A normalisation; `last` is the one that ends a residual branch."""
        scale_init = ZEROS if last and self.zero_init else ONES
        return BatchNorm(channels, decay=self.bn_decay, eps=self.bn_eps, scale_init=scale_init)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer stands: stage, stride, and the size of the map that it makes."""

    stage: int
    stride: int
    height: int
    width: int


def halved(size: int, stride: int) -> int:
    """Rows of a map after a stride."""
    return -(-size // stride)


def spatial_layer(config: ResNetConfig, in_channels: int, channels: int, place: Place):
    """The 3x3 layer of a block: a convolution, or what its stage has instead."""
    attention = config.attention
    if attention is None or place.stage not in attention.stages:
        return Conv(in_channels, channels, 3, place.stride, dtype=config.dtype)
    key_depth, value_depth = augmented_depths(
        channels, attention.kappa, attention.upsilon, attention.heads, attention.min_key_depth
    )
    return AugmentedConv(
        in_channels,
        channels,
        kernel_size=3,
        stride=place.stride,
        heads=attention.heads,
        key_depth=key_depth,
        value_depth=value_depth,
        height=place.height,
        width=place.width,
        downsample=place.stage in attention.downsample,
        position=attention.position,
        dtype=config.dtype,
    )


class Shortcut(nnx.Module):
    """1x1 convolution and normalisation, where a block changes width or resolution."""

    def __init__(self, config: ResNetConfig, in_channels: int, out_channels: int, stride: int):
        self.conv = Conv(in_channels, out_channels, 1, stride, dtype=config.dtype)
        self.norm = config.norm(out_channels)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norm(self.conv(x), train=train)


class Bottleneck(nnx.Module):
    """1x1 to C, 3x3 (with the stride), 1x1 to 4C; the input is added before the last ReLU."""

    expansion = 4

    def __init__(self, config: ResNetConfig, in_channels: int, channels: int, place: Place):
        out_channels = channels * self.expansion
        self.conv1 = Conv(in_channels, channels, 1, dtype=config.dtype)
        self.norm1 = config.norm(channels)
        self.conv2 = spatial_layer(config, channels, channels, place)
        self.norm2 = config.norm(channels)
        self.conv3 = Conv(channels, out_channels, 1, dtype=config.dtype)
        self.norm3 = config.norm(out_channels, last=True)
        self.project = in_channels != out_channels or place.stride > 1
        if self.project:
            self.shortcut = Shortcut(config, in_channels, out_channels, place.stride)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        y = jax.nn.relu(self.norm2(self.conv2(y), train=train))
        y = self.norm3(self.conv3(y), train=train)
        return jax.nn.relu(y + (self.shortcut(x, train=train) if self.project else x))


class BasicBlock(nnx.Module):
    """3x3 (with the stride, and the attention), 3x3; the input is added before the last ReLU."""

    expansion = 1

    def __init__(self, config: ResNetConfig, in_channels: int, channels: int, place: Place):
        self.conv1 = spatial_layer(config, in_channels, channels, place)
        self.norm1 = config.norm(channels)
        self.conv2 = Conv(channels, channels, 3, dtype=config.dtype)
        self.norm2 = config.norm(channels, last=True)
        self.project = in_channels != channels or place.stride > 1
        if self.project:
            self.shortcut = Shortcut(config, in_channels, channels, place.stride)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        return jax.nn.relu(y + (self.shortcut(x, train=train) if self.project else x))


class Stem(nnx.Module):
    """Image -> first map, at 1/4 of the image, or at full size for small images."""

    def __init__(self, config: ResNetConfig, channels: int):
        self.small = config.stem == "small_image"
        size, stride = (3, 1) if self.small else (7, 2)
        self.conv = Conv(3, channels, size, stride, in_axis="image_channels", dtype=config.dtype)
        self.norm = config.norm(channels)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = jax.nn.relu(self.norm(self.conv(images), train=train))
        return x if self.small else max_pool(x, 3, 2)


class ResNet(nnx.Module):
    """Residual network; its stages are the attributes conv2_x .. conv5_x, lists of blocks."""

    def __init__(self, config: ResNetConfig):
        self.config = config
        channels = config.channels(STAGE_WIDTHS[0])
        self.stem = Stem(config, channels)
        height, width = (halved(n, 1 if config.stem == "small_image" else 4) for n in config.size)
        block = Bottleneck if config.bottleneck else BasicBlock
        counts = config.blocks or DEPTHS[config.depth][1]
        for stage, base, count in zip(STAGES, STAGE_WIDTHS, counts, strict=True):
            stage_width, blocks = config.channels(base), []
            for index in range(count):
                stride = 2 if index == 0 and stage > STAGES[0] else 1
                height, width = halved(height, stride), halved(width, stride)
                place = Place(stage, stride, height, width)
                blocks.append(block(config, channels, stage_width, place))
                channels = stage_width * block.expansion
            setattr(self, f"conv{stage}_x", nnx.List(blocks))
        self.head = Classifier(channels, config.num_classes)

    def features(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """Images [B, H, W, 3] -> outputs of conv2_x .. conv5_x, each [B, H', W', C]."""
        x = self.stem(images.astype(self.config.dtype), train=train)
        outputs = []
        for stage in STAGES:
            for block in getattr(self, f"conv{stage}_x"):
                x = block(x, train=train)
            outputs.append(x)
        return outputs

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B, H, W, 3] -> logits [B, classes], float32."""
        x = self.features(images, train=train)[-1]
        return self.head(global_average_pool(x.astype(jnp.float32)))
