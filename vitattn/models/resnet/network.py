"""Residual networks, their attention-augmented and their stand-alone attention versions.

Letters: B batch, H W image, C channels.

The base is ResNet (He et al. 2015, arXiv 1512.03385) in its "v1.5" form, with the stride in the 3x3
convolution: the form whose 8.2 GFLOP both attention papers print. Attention augmentation (arXiv
1904.09925) replaces the 3x3 convolution of a bottleneck, or the first one of a basic block, in the
last stages; stand-alone attention (arXiv 1906.05909) replaces all of a stage. Stages have the
papers' names: conv2_x .. conv5_x run at 1/4, 1/8, 1/16 and 1/32 of the image.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import InputError
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer, named
from trainlib.sharding.constrain import platform
from vitattn.images.size import strided
from vitattn.layers.attention import Site
from vitattn.layers.attention_stem import AttentionStem
from vitattn.layers.conv import Classifier, Conv
from vitattn.layers.norm import Weights
from vitattn.layers.pool import global_average_pool, max_pool
from vitattn.layers.residual import add_relu
from vitattn.layers.squeeze import BETWEEN_STAGES
from vitattn.models.resnet.config import (
    ATTENTION_STEMS,
    SINGLE_STEMS,
    STAGE_WIDTHS,
    STAGES,
    ResNetConfig,
)

STEM_POOL = 4  # window and stride of the pool behind an attention stem
Rngs = nnx.Rngs | None  # keys for arrays at once; None declares the weights only


def spatial_layer(
    config: ResNetConfig,
    in_channels: int,
    channels: int,
    site: Site,
    *,
    first: bool = True,
    rngs: Rngs = None,
) -> nnx.Module:
    """The 3x3 layer of a block, or what its stage has instead; `first` of those in its block."""
    attention = config.attention
    if (
        attention is not None
        and site.stage in attention.stages
        and (first or attention.every_layer)
    ):
        return attention.layer(in_channels, channels, site, dtype=config.dtype, rngs=rngs)
    return Conv(in_channels, channels, 3, site.stride, dtype=config.dtype, rngs=rngs)


class Branch(Layer):
    """What blocks share: the gate at the end of the residual branch, and the shortcut."""

    def __init__(
        self,
        config: ResNetConfig,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        rngs: Rngs = None,
    ):
        self.gated = config.gate not in ("none", *BETWEEN_STAGES)
        if self.gated:
            self.gate = config.make_gate(out_channels, rngs=rngs)
        self.project = in_channels != out_channels or stride > 1
        if self.project:
            self.shortcut = Shortcut(config, in_channels, out_channels, stride, rngs=rngs)

    def close(
        self, x: jax.Array, y: jax.Array, *, train: bool, weights: Weights = None
    ) -> jax.Array:
        """Input x [B, H, W, C] and residual branch y [B, H', W', C'] of a block -> its output."""
        if self.gated:
            y = self.gate(y, train=train, weights=weights)
        if self.project:
            x = self.shortcut(x, train=train, weights=weights)
        return add_relu(x, y)


class Shortcut(Layer):
    """1x1 convolution and normalisation, where a block changes width or resolution."""

    def __init__(
        self,
        config: ResNetConfig,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        rngs: Rngs = None,
    ):
        self.conv = Conv(in_channels, out_channels, 1, stride, dtype=config.dtype, rngs=rngs)
        self.norm = config.make_norm(out_channels, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', C']."""
        return self.norm(self.conv(x), train=train, weights=weights)


class Bottleneck(Branch):
    """1x1 to C, 3x3 (with the stride), 1x1 to 4C; the input is added before the last ReLU."""

    expansion = 4

    def __init__(
        self,
        config: ResNetConfig,
        in_channels: int,
        channels: int,
        site: Site,
        *,
        rngs: Rngs = None,
    ):
        out_channels = channels * self.expansion
        super().__init__(config, in_channels, out_channels, site.stride, rngs=rngs)
        self.conv1 = Conv(in_channels, channels, 1, dtype=config.dtype, rngs=rngs)
        self.norm1 = config.make_norm(channels, rngs=rngs)
        self.conv2 = spatial_layer(config, channels, channels, site, rngs=rngs)
        self.norm2 = config.make_norm(channels, rngs=rngs)
        self.conv3 = Conv(channels, out_channels, 1, dtype=config.dtype, rngs=rngs)
        self.norm3 = config.make_norm(out_channels, last=True, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', 4C]."""
        y = jax.nn.relu(self.norm1(self.conv1(x), train=train, weights=weights))
        y = jax.nn.relu(self.norm2(self.conv2(y), train=train, weights=weights))
        y = self.norm3(self.conv3(y), train=train, weights=weights)
        return self.close(x, y, train=train, weights=weights)


class BasicBlock(Branch):
    """3x3 (with the stride, and the attention), 3x3; the input is added before the last ReLU."""

    expansion = 1

    def __init__(
        self,
        config: ResNetConfig,
        in_channels: int,
        channels: int,
        site: Site,
        *,
        rngs: Rngs = None,
    ):
        super().__init__(config, in_channels, channels, site.stride, rngs=rngs)
        self.conv1 = spatial_layer(config, in_channels, channels, site, rngs=rngs)
        self.norm1 = config.make_norm(channels, rngs=rngs)
        after = dataclasses.replace(site, stride=1)
        self.conv2 = spatial_layer(config, channels, channels, after, first=False, rngs=rngs)
        self.norm2 = config.make_norm(channels, last=True, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', C']."""
        y = jax.nn.relu(self.norm1(self.conv1(x), train=train, weights=weights))
        y = self.norm2(self.conv2(y), train=train, weights=weights)
        return self.close(x, y, train=train, weights=weights)


class Stem(Layer):
    """Image -> first map, at 1/4 of the image, or for small ones at their size or half of it."""

    def __init__(self, config: ResNetConfig, channels: int, *, rngs: Rngs = None):
        self.kind = config.stem
        if self.kind in ATTENTION_STEMS:
            self.attention = AttentionStem(
                3,
                channels,
                values=ATTENTION_STEMS[self.kind],
                relative=config.stem_relative,
                dtype=config.dtype,
                rngs=rngs,
            )
        else:
            single = self.kind in SINGLE_STEMS
            size, stride = (3, config.stem_stride) if single else (7, 2)
            self.conv = Conv(
                3,
                channels,
                size,
                stride,
                in_axis="image_channels",
                dtype=config.dtype,
                rngs=rngs,
            )
        self.norm = config.make_norm(channels, rngs=rngs)

    def __call__(
        self, images: jax.Array, *, train: bool = False, weights: Weights = None
    ) -> jax.Array:
        """Images [B, H, W, 3] -> [B, ceil(H / s), ceil(W / s), C], s the `stem_stride`."""
        attends = self.kind in ATTENTION_STEMS
        if attends and min(images.shape[1:3]) < STEM_POOL:
            raise InputError(
                f"A network with an attention stem takes images of at least {STEM_POOL} x "
                f"{STEM_POOL} pixels, the window of its first pool, and was given the shape "
                f"{images.shape}."
            )
        x = self.attention(images) if attends else self.conv(images)
        if self.kind in SINGLE_STEMS:
            return jax.nn.relu(self.norm(x, train=train, weights=weights))
        pool = (STEM_POOL, STEM_POOL) if attends else (3, 2)
        if platform() == "cpu":
            return max_pool(jax.nn.relu(self.norm(x, train=train, weights=weights)), *pool)
        # The same values in 64 % of the time on a TPU; a CPU would take a tenth more.
        return jax.nn.relu(self.norm(x, train=train, weights=weights, pool=pool))


class Backbone(Layer):
    """The stem and the stages of a residual network, attributes conv2_x .. conv5_x, lists of
    blocks.

    Args:
      config: what to build.
      rngs: keys for arrays at once; None declares the weights only (`trainlib.model.weights`).
    """

    def __init__(self, config: ResNetConfig, *, rngs: Rngs = None):
        self.config = config
        channels = config.channels(STAGE_WIDTHS[0])
        self.stem = Stem(config, channels, rngs=rngs)
        height, width = (strided(n, config.stem_stride) for n in config.size)
        block = Bottleneck if config.bottleneck else BasicBlock
        for stage, count in config.blocks_of.items():
            base = STAGE_WIDTHS[stage - STAGES[0]]
            stage_width, blocks = config.channels(base), []
            for index in range(count):
                stride = 2 if index == 0 and stage > STAGES[0] else 1
                height, width = strided(height, stride), strided(width, stride)
                site = Site(stage, stride, height, width)
                blocks.append(block(config, channels, stage_width, site, rngs=rngs))
                channels = stage_width * block.expansion
            if config.gate in BETWEEN_STAGES and stage < config.stages[-1]:
                blocks.append(config.make_gate(channels, rngs=rngs))
            setattr(self, f"conv{stage}_x", nnx.List(blocks))

    @named
    def features(
        self, images: jax.Array, *, train: bool = False, weights: Weights = None
    ) -> list[jax.Array]:
        """Images [B, H, W, 3] -> outputs of the stages, each [B, H', W', C] in the compute
        type.
        """
        check_array("An image model", images, "B H W C", C=3)
        x = self.stem(images.astype(self.config.dtype), train=train, weights=weights)
        outputs = []
        for stage in self.config.stages:
            for block in getattr(self, f"conv{stage}_x"):
                x = block(x, train=train, weights=weights)
            outputs.append(x)
        return outputs


class ResNet(Backbone):
    """A residual network that classifies: `Backbone`, the mean over pixels and a linear layer.

    Args:
      config: what to build.
      rngs: keys for arrays at once; None declares the weights only (`trainlib.model.weights`).
    """

    def __init__(self, config: ResNetConfig, *, rngs: Rngs = None):
        super().__init__(config, rngs=rngs)
        self.head = Classifier(config.widths[-1], config.num_classes, rngs=rngs)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        weights: Weights = None,
    ) -> jax.Array:
        """Images [B, H, W, 3] -> f32 logits [B, classes].

        Args:
          images: of any float type.
          train: normalise by the batch, and move or leave its statistics.
          key: of models that draw at random (`MnasNet`); nothing here does.
          weights: f32 [B], what each image counts in the statistics of training; None: all 1.

        Raises:
          InputError: images of another shape.
        """
        x = self.features(images, train=train, weights=weights)[-1]
        return self.head(global_average_pool(x.astype(jnp.float32)))
