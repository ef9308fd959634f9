"""FLOPs as the papers count them, by formulas where the program here does other work."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from trainlib.model import weights
from vitattn.images.size import strided
from vitattn.models import ModelConfig, from_config
from vitattn.models.counts import forward_flops
from vitattn.models.resnet.config import (
    ATTENTION_STEMS,
    STAGE_WIDTHS,
    STAGES,
    LocalConfig,
    ResNetConfig,
)
from vitattn.models.retinanet.config import LAST_STAGE, WINDOW, RetinaNetConfig
from vitattn.models.retinanet.heads import BOX

_HEADS = LocalConfig(window=WINDOW)  # what pyramid and heads attend by


def paper_flops(config: ModelConfig) -> float:
    """FLOPs of a forward pass of one image as the papers count them.

    For attention in windows that is the formula: each query meets the K x K keys of its window, in
    three products: with keys, with positions, with values. The program here computes more (all keys
    of a block and its halo, masked) and less (position terms as a row and a column).
    """
    network = config.backbone if isinstance(config, RetinaNetConfig) else config
    if not isinstance(network, ResNetConfig):
        return _counted(config)
    plain: dict[str, Any] = {}
    change = 0
    if isinstance(attention := network.attention, LocalConfig):
        plain["attention"] = None
        for stage, width, before, after in _layers(network):
            if stage in attention.stages:  # it runs before the stride
                change += _window_flops(attention, width, width, before)
                change -= _convolution_flops(width, width, after)
    if network.stem in ATTENTION_STEMS:
        plain["stem"] = "conv"
        change += _stem_change(network)
    if isinstance(config, RetinaNetConfig) and config.head_attention != "none":
        plain["head_attention"] = "none"
        change += _head_change(config)
    return _counted(dataclasses.replace(config, **plain)) + change


@functools.cache
def _counted(config: ModelConfig) -> int:
    return forward_flops(weights.abstract(from_config(config)), config.size)


def _layers(config: ResNetConfig) -> Iterator[tuple[int, int, int, int]]:
    """Stage, width, pixels of the input and of the output of each 3x3 layer of the blocks."""
    height, width = (strided(size, config.stem_stride) for size in config.size)
    for stage, count in config.blocks_of.items():
        base = STAGE_WIDTHS[stage - STAGES[0]]
        for index in range(count):
            before = height * width
            if index == 0 and stage > STAGES[0]:
                height, width = strided(height, 2), strided(width, 2)
            yield stage, config.channels(base), before, height * width


def _window_flops(attention: LocalConfig, inputs: int, width: int, pixels: int) -> int:
    """FLOPs of attention in windows: projections, and each query's products with its window."""
    has_keys, has_positions = not attention.position_only, attention.position == "relative"
    projections = (2 + has_keys) * inputs * width
    pairs = attention.window**2 * width * (1 + has_keys + has_positions)
    return 2 * pixels * (projections + pairs)


def _convolution_flops(inputs: int, width: int, pixels: int, size: int = 3) -> int:
    """FLOPs of a convolution that makes a map of so many pixels."""
    return 2 * pixels * size**2 * inputs * width


def _stem_change(config: ResNetConfig) -> int:
    """FLOPs of an attention stem in place of the 7x7 convolution: 4x4 keys, 4 value mixtures."""
    width, pixels = config.channels(STAGE_WIDTHS[0]), config.size[0] * config.size[1]
    values = {"mixed": 4 * 3, "plain": 3, "conv": 16 * 3}[ATTENTION_STEMS[config.stem]]
    attention = width * (2 * 3 + values + 3 * 16)
    return 2 * (pixels * attention - (pixels // 4) * 7 * 7 * 3 * width)


def _head_change(config: RetinaNetConfig) -> int:
    """FLOPs of attention in place of the 3x3 convolutions of both heads and, where it is there too,
    of the pyramid.
    """
    width, sizes = config.features, [rows * columns for rows, columns in config.map_sizes]
    outputs = config.num_anchors * (config.num_classes + BOX)
    towers = 2 * config.head_layers
    change = 0
    for pixels in sizes:
        change += (towers + 2) * _window_flops(_HEADS, width, width, pixels)
        change += _convolution_flops(width, outputs, pixels, size=1)
        change -= _convolution_flops(width, towers * width + outputs, pixels)
    if config.head_attention == "towers":
        return change
    own = LAST_STAGE - config.min_level + 1  # levels that are made of maps of the backbone
    for level, pixels in enumerate(sizes):
        before = pixels if level < own else 4 * pixels
        inputs = width
        if level == own and config.p6_from == "c5":
            inputs = config.backbone.widths[-1]
        change += _window_flops(_HEADS, inputs, width, before)
        change -= _convolution_flops(inputs, width, pixels)
    return change
