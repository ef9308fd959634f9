"""The feature pyramid (Lin et al. 2016, arXiv 1612.03144): maps of one width at every level.

Letters: B batch, H W the image, C channels of a map of the backbone, F width of the pyramid.

Level N has 1/2^N of the image's resolution. Down to that of the backbone's last stage a level is a
1x1 convolution of the backbone's map plus the level above it, each pixel doubled in both directions
and then a 3x3 convolution; the next ones are 3x3 convolutions with stride 2, of P5 or of the
backbone's last map, with a ReLU between two of them. Normalisations come last, and no level is made
of a normalised one.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from trainlib.model.layer import Layer
from vitattn.layers.conv import Conv
from vitattn.layers.init import LECUN_NORMAL, ZEROS
from vitattn.layers.local import LocalAttention
from vitattn.layers.norm import BatchNorm, Weights
from vitattn.layers.pool import double
from vitattn.models.resnet.config import STAGES
from vitattn.models.retinanet.config import HEADS, LAST_STAGE, WINDOW, RetinaNetConfig

Rngs = nnx.Rngs | None  # keys for arrays at once; None declares the weights only


def level_norm(config: RetinaNetConfig, *, rngs: Rngs) -> BatchNorm:
    """A normalisation of the map of one level."""
    return BatchNorm(config.features, decay=config.bn_decay, eps=config.bn_eps, rngs=rngs)


def _convolution(
    config: RetinaNetConfig, channels: int, size: int, stride: int = 1, *, rngs: Rngs
) -> Conv:
    return Conv(
        channels,
        config.features,
        size,
        stride,
        init=LECUN_NORMAL,
        bias_init=ZEROS,
        dtype=config.dtype,
        rngs=rngs,
    )


def _spatial(
    config: RetinaNetConfig, channels: int, stride: int, *, rngs: Rngs
) -> Conv | LocalAttention:
    """A 3x3 convolution, or the attention that stands for it."""
    if config.head_attention != "towers_and_pyramid":
        return _convolution(config, channels, 3, stride, rngs=rngs)
    return LocalAttention(
        channels,
        config.features,
        num_heads=HEADS,
        window=WINDOW,
        stride=stride,
        dtype=config.dtype,
        rngs=rngs,
    )


class Pyramid(Layer):
    """Maps of the backbone -> maps of all levels.

    Args:
      config: what to build.
      rngs: keys for arrays at once; None declares the weights only (`trainlib.model.weights`).
    """

    def __init__(self, config: RetinaNetConfig, *, rngs: Rngs = None):
        self.config = config
        widths = config.backbone.widths[config.min_level - STAGES[0] :]
        self.lateral = nnx.List([_convolution(config, width, 1, rngs=rngs) for width in widths])
        self.output = nnx.List([_spatial(config, config.features, 1, rngs=rngs) for _ in widths])
        inputs = [config.features] * (config.max_level - LAST_STAGE)
        if inputs and config.p6_from == "c5":
            inputs[0] = widths[-1]
        self.coarse = nnx.List([_spatial(config, width, 2, rngs=rngs) for width in inputs])
        if config.pyramid_norm == "batch":
            self.norm = nnx.List([level_norm(config, rngs=rngs) for _ in config.levels])

    def __call__(
        self, maps: Sequence[jax.Array], *, train: bool = False, weights: Weights = None
    ) -> list[jax.Array]:
        """Maps of the backbone [B, H / 2^N, W / 2^N, C] from min_level to 5 -> maps of all levels
        [B, H / 2^N, W / 2^N, F] in the compute type, the finest first.
        """
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for finer in reversed(range(len(merged) - 1)):
            merged[finer] = merged[finer] + double(merged[finer + 1])
        levels = [layer(x) for layer, x in zip(self.output, merged, strict=True)]
        x = maps[-1] if self.config.p6_from == "c5" else levels[-1]
        for number, layer in enumerate(self.coarse):
            x = layer(jax.nn.relu(x) if number else x)
            levels.append(x)
        if self.config.pyramid_norm == "none":
            return levels
        return [
            norm(x, train=train, weights=weights) for norm, x in zip(self.norm, levels, strict=True)
        ]
