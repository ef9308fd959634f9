"""RetinaNet as data: its backbone, its pyramid of maps, its heads and its anchors.

The defaults are the form whose counts both attention papers print (33.4 M parameters, 182 GFLOP of
an image of 640 x 640 pixels): 6 anchors a location, 90 classes, P6 from P5, a batch normalisation
on each level of the pyramid and, level by level, behind each convolution of the heads.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

from trainlib.errors import ConfigError
from trainlib.keys import check_fields, choice, many, number, whole
from vitattn.images.size import sides
from vitattn.layers.augmented import AugmentedConfig
from vitattn.models.resnet import config as resnet
from vitattn.models.resnet.config import ResNetConfig

HEADS, WINDOW = 8, 7  # of attention in pyramid and heads, arXiv 1906.05909
LAST_STAGE = 5  # conv5_x, at 1/32 of the image: the levels beyond it are made of the one before
STEMS = tuple(stem for stem in resnet.STEMS if stem not in resnet.SINGLE_STEMS)


def frozen_stages(count: int) -> tuple[str, ...]:
    """Patterns for `optimizer.frozen`: the stem and the next stages, `count` parts in all.

    Args:
      count: 0 to 5; 2 (stem and conv2_x) is usual with pretrained weights.

    Raises:
      ConfigError: another number.
    """
    parts = ("stem", *(f"conv{stage}_x" for stage in resnet.STAGES))
    if not 0 <= count <= len(parts):
        raise ConfigError(
            f"A backbone has {len(parts)} parts that can be frozen, and was asked for {count}."
        )
    return (rf"^backbone\.({'|'.join(parts[:count])})\.",) if count else ()


@dataclasses.dataclass(frozen=True)
class RetinaNetConfig:
    """Everything that defines a RetinaNet.

    Attributes:
      depth: of the backbone: 18, 26, 34, 38, 50, 101 or 152.
      blocks: blocks of each stage of the backbone; empty takes those of `depth`.
      width: multiplier of every width of the backbone, stem included.
      num_classes: logits of an anchor.
      image_size: pixels of the (square) image, or (height, width), multiples of 2^max_level.
      stem: of the backbone: "conv", "attention", "attention_plain" or "attention_conv".
      stem_relative: relative positions in the logits of an attention stem.
      zero_init: residual branches of the backbone start as nothing.
      attention: what replaces 3x3 convolutions of the backbone.
      gate: "none"; "se", "cbam", "gala" or "gather_excite" at the end of each residual branch; or
        "bam" after every stage but the last.
      gate_ratio: channels of the branch over those within the gate.
      norm: of the backbone: "batch", or "frozen": scales, biases, means and variances all stay as
        they are given and are no parameters (of pretrained weights).
      dtype: compute type, "float32" or "bfloat16"; logits are float32.
      bn_decay: of running statistics.
      bn_eps: added to variances.
      features: width of pyramid and heads.
      head_layers: layers of each head before its predictor.
      min_level: finest level of the pyramid; level N has 1/2^N of the image's resolution.
      max_level: coarsest level.
      p6_from: what the first level beyond the backbone is made of: "p5", the level before, or "c5",
        the last map of the backbone.
      pyramid_norm: "batch" or "none", on each level.
      head_norm: "batch" (one for each level), "group" (shared by the levels) or "none".
      head_attention: "none", "towers" (attention in windows for every convolution of the heads) or
        "towers_and_pyramid" (for every 3x3 convolution of the pyramid too).
      num_scales: anchors of a ratio: scales 2^(i / num_scales).
      aspect_ratios: width over height of anchors.
      anchor_scale: side of the smallest square anchor over the stride of its level.
      anchors: "centred" (on the middle of their cell, exact sides) or "torchvision" (on its corner,
        sides rounded, ratios before scales).
      prior: probability that an anchor is given at the start of training.
    """

    # 8 heads with at least 20 channels each would give 33.7 M parameters, not the printed 33.1 M.
    PRESETS: ClassVar = (AugmentedConfig(min_key_depth=0),)

    depth: Annotated[int, choice(*resnet.DEPTHS)] = 50
    blocks: resnet.Blocks = ()
    width: resnet.Width = 1.0
    num_classes: resnet.Classes = 90
    image_size: resnet.Pixels = 640
    stem: Annotated[str, choice(*STEMS)] = "conv"
    stem_relative: bool = False
    zero_init: bool = True
    attention: resnet.Attention | None = None
    gate: resnet.GateName = "none"
    gate_ratio: resnet.Ratio = 16
    norm: resnet.Norm = "batch"
    dtype: resnet.DType = "float32"
    bn_decay: resnet.Share = 0.997
    bn_eps: resnet.Epsilon = 1e-4
    features: Annotated[int, whole(1, 2**16)] = 256
    head_layers: Annotated[int, whole(0, 100)] = 4
    min_level: Annotated[int, whole(2, LAST_STAGE)] = 3
    max_level: Annotated[int, whole(LAST_STAGE, 10)] = 7
    p6_from: Annotated[str, choice("p5", "c5")] = "p5"
    pyramid_norm: Annotated[str, choice("batch", "none")] = "batch"
    head_norm: Annotated[str, choice("batch", "group", "none")] = "batch"
    head_attention: Annotated[str, choice("none", "towers", "towers_and_pyramid")] = "none"
    num_scales: Annotated[int, whole(1, 32)] = 2
    aspect_ratios: Annotated[tuple[float, ...], many(number(0.01, 100), most=32)] = (1.0, 2.0, 0.5)
    anchor_scale: Annotated[float, number(above=0, high=1000)] = 4.0
    anchors: Annotated[str, choice("centred", "torchvision")] = "centred"
    prior: Annotated[float, number(above=0, below=1)] = 0.01

    def __post_init__(self):
        check_fields(self, "model")
        if not self.aspect_ratios:
            raise ConfigError("model.aspect_ratios is empty: anchors need one ratio or more.")
        if self.head_attention != "none" and self.features % HEADS:
            raise ConfigError(
                f"model.features={self.features} with model.head_attention='{self.head_attention}' "
                f"is not allowed: {HEADS} heads share the width. Nearest: "
                f"{max(2, round(self.features / HEADS)) * HEADS}."
            )
        self._check_size()
        _ = self.backbone  # which refuses what it cannot be

    def _check_size(self) -> None:
        step = 2**self.max_level
        nearest = tuple(max(1, round(side / step)) * step for side in self.size)
        if nearest != self.size:
            square = isinstance(self.image_size, int)
            raise ConfigError(
                f"model.image_size={self.image_size} is not allowed: the coarsest level of the "
                f"pyramid, model.max_level={self.max_level}, has 1/{step} of the image's "
                f"resolution. Nearest: {nearest[0] if square else nearest}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return sides(self.image_size)

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of the pyramid, the finest first."""
        return tuple(range(self.min_level, self.max_level + 1))

    @property
    def map_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the map of each level."""
        height, width = self.size
        return tuple((height >> level, width >> level) for level in self.levels)

    @property
    def num_anchors(self) -> int:
        """Anchors of a location."""
        return self.num_scales * len(self.aspect_ratios)

    @property
    def backbone(self) -> ResNetConfig:
        """The residual network whose maps the pyramid is made of."""
        shared = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(ResNetConfig)
        }
        return ResNetConfig(**shared)
