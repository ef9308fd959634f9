"""Residual networks as data: depths, widths, stems, and what stands in place of a convolution."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from trainlib.errors import ConfigError, one_of
from vitattn import size
from vitattn.layers.norm import ONES, ZEROS, BatchNorm
from vitattn.layers.squeeze import GATES

STAGES = (2, 3, 4, 5)  # conv2_x .. conv5_x
STAGE_WIDTHS = (64, 128, 256, 512)

# depth -> (bottleneck, blocks of conv2_x .. conv5_x). 26 and 38 take two and one block a stage from
# 50 (arXiv 1906.05909, section 4.1).
DEPTHS = {
    18: (False, (2, 2, 2, 2)),
    26: (True, (1, 2, 4, 1)),
    34: (False, (3, 4, 6, 3)),
    38: (True, (2, 3, 5, 2)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}
# Stems of arXiv 1906.05909 by the values of their attention.
ATTENTION_STEMS = {"attention": "mixed", "attention_plain": "plain", "attention_conv": "conv"}
STEMS = ("conv", "small_image", *ATTENTION_STEMS)
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
      position: "relative", "none", "sine" or "coord".
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
class LocalConfig:
    """Stand-alone self-attention in a window around each pixel, arXiv 1906.05909.

    Attributes:
      heads: attention heads.
      window: odd side of the window.
      stages: stages whose 3x3 convolutions are replaced (2 is conv2_x).
      position: "relative", "none" or "sine".
      position_only: logits of queries and relative positions alone, without keys.
      mask_border: leaves pixels outside the map out of the softmax; the paper counts them.
    """

    kind: ClassVar[str] = "local"

    heads: int = 8
    window: int = 7
    stages: tuple[int, ...] = STAGES
    position: str = "relative"
    position_only: bool = False
    mask_border: bool = False


@dataclasses.dataclass(frozen=True)
class HaloConfig:
    """Attention of blocks to themselves and a halo, arXiv 2103.12731, in place of `LocalConfig`.

    Attributes:
      heads: attention heads.
      block: side of a block of queries.
      halo: pixels around the block that it also attends to; 0 for separate blocks.
      stages: stages whose 3x3 convolutions are replaced.
      position: "relative", "none" or "sine".
      mask_border: leaves pixels outside the map out of the softmax.
    """

    kind: ClassVar[str] = "halo"

    heads: int = 8
    block: int = 7
    halo: int = 3
    stages: tuple[int, ...] = STAGES
    position: str = "relative"
    mask_border: bool = True


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Everything that defines a residual network.

    Attributes:
      depth: 18, 26, 34, 38, 50, 101 or 152.
      blocks: blocks of each stage; empty takes those of `depth`.
      width: multiplier of every width, stem included.
      num_classes: logits.
      image_size: pixels of the (square) image, or (height, width): relative positions depend on it.
      stem: "conv" (7x7 stride 2, then 3x3 max pool), "small_image" (3x3, no pool: CIFAR, digits),
        or "attention", "attention_plain", "attention_conv" (attention in 4x4 blocks, then 4x4 max
        pool; values mixed by place, by one projection, by a convolution).
      stem_relative: relative positions in the logits of an attention stem.
      zero_init: residual branches start as nothing (scale of their last normalisation is 0), as in
        the public TPU recipe.
      attention: what replaces 3x3 convolutions.
      gate: "none", "se", "cbam" or "gather_excite", at the end of each residual branch.
      gate_ratio: channels of the branch over those within the gate.
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
    stem_relative: bool = False
    zero_init: bool = True
    attention: AugmentedConfig | LocalConfig | HaloConfig | None = None
    gate: str = "none"
    gate_ratio: int = 16
    dtype: str = "float32"
    bn_decay: float = 0.9
    bn_eps: float = 1e-5

    def __post_init__(self):
        size.check(self.image_size)
        if self.depth not in DEPTHS:
            raise one_of("model.depth", self.depth, map(str, DEPTHS))
        for key, options in (("stem", STEMS), ("dtype", DTYPES), ("gate", GATES)):
            if getattr(self, key) not in options:
                raise one_of(f"model.{key}", getattr(self, key), options)
        if self.channels(STAGE_WIDTHS[0]) < 1:
            raise ConfigError(f"model.width={self.width} leaves no channel in conv2_x.")
        if self.gate_ratio < 1:
            raise ConfigError(f"model.gate_ratio={self.gate_ratio} must be at least 1.")
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
        return size.sides(self.image_size)

    def channels(self, base: int) -> int:
        """A width scaled by the multiplier."""
        return round(base * self.width)

    def norm(self, channels: int, *, last: bool = False) -> BatchNorm:
        """A normalisation; `last` is the one that ends a residual branch."""
        scale_init = ZEROS if last and self.zero_init else ONES
        return BatchNorm(channels, decay=self.bn_decay, eps=self.bn_eps, scale_init=scale_init)
