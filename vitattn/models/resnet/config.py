"""Residual networks as data: depths, widths, stems, and what stands in place of a convolution.

What attends is said by a dataclass of `vitattn.layers`, which builds the layer too; `Attention` is
the union of those that a ResNet may have.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from flax import nnx

from trainlib.errors import ConfigError
from trainlib.keys import check_fields, choice, either, fit, many, number, pair, whole
from vitattn.images.size import sides
from vitattn.layers import squeeze
from vitattn.layers.attention import AttentionConfig
from vitattn.layers.augmented import AugmentedConfig
from vitattn.layers.init import ONES, ZEROS
from vitattn.layers.local import HaloConfig, LocalConfig
from vitattn.layers.norm import BatchNorm
from vitattn.layers.squeeze import GATES, Gate

STAGES = (2, 3, 4, 5)  # conv2_x .. conv5_x
MOST_PIXELS = 2**16  # of a side of an image
STAGE_WIDTHS = (64, 128, 256, 512)

# depth -> (bottleneck, blocks of conv2_x .. conv5_x). 26 and 38 take two and one block a stage from
# 50 (arXiv 1906.05909, section 4.1).
DEPTHS: dict[int, tuple[bool, tuple[int, ...]]] = {
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
STEMS = ("conv", "small_image", "strided", *ATTENTION_STEMS)
# Stems of one 3x3 convolution -> its stride; the others end at 1/4 of the image.
SINGLE_STEMS = {"small_image": 1, "strided": 2}
DTYPES = ("float32", "bfloat16")

# What fields of several models take.
Blocks = Annotated[tuple[int, ...], many(whole(1, 1000), 0, len(STAGES))]
UpToBlocks = Annotated[tuple[int, ...], many(whole(1, 1000), *range(len(STAGES) + 1))]
Width = Annotated[float, number(above=0, high=1000)]
Classes = Annotated[int, whole(1)]
Pixels = Annotated[
    int | tuple[int, int], either(whole(1, MOST_PIXELS), pair(whole(1, MOST_PIXELS)))
]
GateName = Annotated[str, choice(*GATES)]
Ratio = Annotated[int, whole(1)]
Norm = Annotated[str, choice("batch", "frozen")]
DType = Annotated[str, choice(*DTYPES)]
Share = Annotated[float, number(0, below=1)]
Epsilon = Annotated[float, number(above=0)]


Attention = AugmentedConfig | LocalConfig | HaloConfig


def check_stages(attention: AttentionConfig | None, stages: tuple[int, ...]) -> None:
    """Refuses attention in a stage that a network has not.

    Raises:
      ConfigError: names the key, its value and what is allowed.
    """
    if attention is None:
        return
    allowed = many(whole(stages[0], stages[-1]), most=len(stages))
    for name in ("stages", "downsample"):
        fit(f"model.attention.{name}", getattr(attention, name, ()), allowed)


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Everything that defines a residual network.

    Attributes:
      depth: 18, 26, 34, 38, 50, 101 or 152.
      blocks: blocks of each stage; empty takes those of `depth`, fewer than four leave the last
        stages out.
      width: multiplier of every width, stem included.
      num_classes: logits.
      image_size: pixels of the (square) image, or (height, width): relative positions depend on it.
      stem: "conv" (7x7 stride 2, then 3x3 max pool), "small_image" (3x3, no pool: CIFAR, digits),
        "strided" (the same with stride 2), or "attention", "attention_plain", "attention_conv"
        (attention in 4x4 blocks, then 4x4 max pool; values mixed by position, by one projection,
        by a convolution).
      stem_relative: relative positions in the logits of an attention stem.
      zero_init: residual branches start as nothing (scale of their last normalisation is 0), as in
        the public TPU recipe.
      attention: what replaces 3x3 convolutions.
      gate: "none"; "se", "cbam", "gala" or "gather_excite" at the end of each residual branch; or
        "bam" after every stage but the last.
      gate_ratio: channels of the branch over those within the gate.
      norm: "batch", or "frozen": the same by scales, biases, means and variances that all stay as
        they are given and are no parameters (of pretrained weights).
      dtype: compute type, "float32" or "bfloat16".
      bn_decay: of running statistics.
      bn_eps: added to variances.
    """

    depth: Annotated[int, choice(*DEPTHS)] = 50
    blocks: UpToBlocks = ()
    width: Width = 1.0
    num_classes: Classes = 1000
    image_size: Pixels = 224
    stem: Annotated[str, choice(*STEMS)] = "conv"
    stem_relative: bool = False
    zero_init: bool = True
    attention: Attention | None = None
    gate: GateName = "none"
    gate_ratio: Ratio = 16
    norm: Norm = "batch"
    dtype: DType = "float32"
    bn_decay: Share = 0.9
    bn_eps: Epsilon = 1e-5

    def __post_init__(self):
        check_fields(self, "model")
        check_stages(self.attention, self.stages)
        if self.channels(STAGE_WIDTHS[0]) < 1:
            raise ConfigError(f"model.width={self.width} leaves no channel in conv2_x.")

    @property
    def bottleneck(self) -> bool:
        """Whether blocks are 1x1, 3x3, 1x1 (else 3x3, 3x3)."""
        return DEPTHS[self.depth][0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return sides(self.image_size)

    @property
    def blocks_of(self) -> dict[int, int]:
        """Stage -> its blocks."""
        return dict(zip(STAGES, self.blocks or DEPTHS[self.depth][1], strict=False))

    @property
    def stages(self) -> tuple[int, ...]:
        """Those that there are, of conv2_x .. conv5_x."""
        return tuple(self.blocks_of)

    @property
    def stem_stride(self) -> int:
        """Pixels of the image, in one row, for one of the first map."""
        return SINGLE_STEMS.get(self.stem, 4)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the outputs of the stages."""
        expansion = 4 if self.bottleneck else 1
        return tuple(
            expansion * self.channels(base)
            for base, _ in zip(STAGE_WIDTHS, self.stages, strict=False)
        )

    def channels(self, base: int) -> int:
        """A width scaled by the multiplier."""
        return round(base * self.width)

    def make_gate(self, channels: int, *, rngs: nnx.Rngs | None = None) -> Gate:
        """The gate of a residual branch, or of a stage, of so many channels."""
        return squeeze.make_gate(
            self.gate,
            channels,
            ratio=self.gate_ratio,
            decay=self.bn_decay,
            eps=self.bn_eps,
            dtype=self.dtype,
            rngs=rngs,
        )

    def make_norm(
        self, channels: int, *, last: bool = False, rngs: nnx.Rngs | None = None
    ) -> BatchNorm:
        """A normalisation; `last` is the one that ends a residual branch."""
        frozen = self.norm == "frozen"
        # A scale that is frozen at 0 would leave nothing of the branch for ever.
        scale_init = ZEROS if last and self.zero_init and not frozen else ONES
        return BatchNorm(
            channels,
            decay=self.bn_decay,
            eps=self.bn_eps,
            scale_init=scale_init,
            frozen=frozen,
            rngs=rngs,
        )
