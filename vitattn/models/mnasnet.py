"""MnasNet-A1 (Tan et al. 2018, arXiv 1807.11626) and its attention-augmented version.

Letters: B batch, H W image, C channels, e expansion, k kernel size.

A block widens its input by e with a 1x1 convolution, runs a depthwise k x k one there, gates it
by squeeze-and-excitation, and projects back without an activation. Attention augmentation (arXiv
1904.09925, table 4) replaces the 1x1 expansion wherever it runs at 1/16 of the image or less: the
reading that reproduces the published parameters and FLOPs of all four widths.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.keys import check_fields, choice, many, whole
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer
from vitattn.images.size import sides, strided
from vitattn.layers.attention import Site
from vitattn.layers.augmented import AugmentedConfig
from vitattn.layers.conv import Classifier, Conv
from vitattn.layers.norm import BatchNorm, Weights
from vitattn.layers.pool import global_average_pool
from vitattn.layers.squeeze import SqueezeExcite
from vitattn.models.resnet import config as fields

STEM_WIDTH = 32
HEAD_WIDTH = 1280  # of every multiplier
STEMS = ("conv", "small_image")
STAGES = (1, 2, 3, 4, 5)  # what runs at 1/2 .. 1/32 of the image
Rngs = nnx.Rngs | None  # keys for arrays at once; None declares the weights only


class Row(NamedTuple):
    """Blocks of one kind: figure 7 of arXiv 1807.11626."""

    repeats: int
    expansion: int
    kernel: int
    channels: int
    stride: int
    squeeze: float  # channels of the gate over those of the block's input; 0 for no gate


ROWS = (
    Row(1, 1, 3, 16, 1, 0),
    Row(2, 6, 3, 24, 2, 0),
    Row(3, 3, 5, 40, 2, 0.25),
    Row(4, 6, 3, 80, 2, 0),
    Row(2, 6, 3, 112, 1, 0.25),
    Row(3, 6, 5, 160, 2, 0.25),
    Row(1, 6, 3, 320, 1, 0),
)


@dataclasses.dataclass(frozen=True)
class MnasNetConfig:
    """Everything that defines a MnasNet-A1.

    Attributes:
      width: multiplier of the widths, but not of the 1280 channels of the head.
      blocks: blocks of each of the seven rows; empty takes those of the paper.
      num_classes: logits.
      image_size: pixels of the (square) image, or (height, width): relative positions depend on it.
      stem: "conv" (3x3 stride 2) or "small_image" (3x3 stride 1: CIFAR, digits).
      dropout: probability of dropping a feature before the classifier.
      attention: what augments the expansions.
      dtype: compute type, "float32" or "bfloat16".
      bn_decay: of running statistics.
      bn_eps: added to variances.
    """

    # Attention as arXiv 1904.09925 has it in MnasNet.
    PRESETS: ClassVar = (
        AugmentedConfig(
            kappa=0.1, upsilon=0.05, num_heads=4, min_key_depth=0, stages=(4, 5), downsample=()
        ),
    )

    width: fields.Width = 1.0
    blocks: Annotated[tuple[int, ...], many(whole(1, 1000), 0, len(ROWS))] = ()
    num_classes: fields.Classes = 1000
    image_size: fields.Pixels = 224
    stem: Annotated[str, choice(*STEMS)] = "conv"
    dropout: fields.Share = 0.2
    attention: AugmentedConfig | None = None
    dtype: fields.DType = "float32"
    bn_decay: fields.Share = 0.99
    bn_eps: fields.Epsilon = 1e-3

    def __post_init__(self):
        check_fields(self, "model")
        fields.check_stages(self.attention, STAGES)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return sides(self.image_size)

    def channels(self, base: int) -> int:
        """A width scaled by the multiplier, rounded to a multiple of 8, never down by over 10 %."""
        scaled = base * self.width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * scaled else rounded

    def norm(self, channels: int, rngs: Rngs = None) -> BatchNorm:
        """A normalisation."""
        return BatchNorm(channels, decay=self.bn_decay, eps=self.bn_eps, rngs=rngs)


class InvertedBlock(Layer):
    """1x1 to e C with ReLU, depthwise k x k with ReLU, gate, 1x1; plus the input where equal."""

    def __init__(
        self,
        config: MnasNetConfig,
        row: Row,
        in_channels: int,
        site: Site,
        stride: int,
        *,
        rngs: Rngs = None,
    ):
        """Declares the weights; `site` is the expansion's, `stride` the depthwise layer's."""
        out_channels, wide = config.channels(row.channels), in_channels * row.expansion
        attention, options = config.attention, {"dtype": config.dtype, "rngs": rngs}
        self.expands, self.gated = row.expansion > 1, row.squeeze > 0
        self.adds = stride == 1 and in_channels == out_channels
        if self.expands:
            if attention is not None and site.stage in attention.stages:
                self.expand = attention.layer(in_channels, wide, site, kernel_size=1, **options)
            else:
                self.expand = Conv(in_channels, wide, 1, **options)
            self.norm1 = config.norm(wide, rngs)
        self.depthwise = Conv(wide, wide, row.kernel, stride, depthwise=True, **options)
        self.norm2 = config.norm(wide, rngs)
        if self.gated:
            self.gate = SqueezeExcite(wide, max(1, int(in_channels * row.squeeze)), rngs=rngs)
        self.project = Conv(wide, out_channels, 1, **options)
        self.norm3 = config.norm(out_channels, rngs)

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C']."""
        y = x
        if self.expands:
            y = jax.nn.relu(self.norm1(self.expand(y), train=train, weights=weights))
        y = jax.nn.relu(self.norm2(self.depthwise(y), train=train, weights=weights))
        if self.gated:
            y = self.gate(y, train=train, weights=weights)
        y = self.norm3(self.project(y), train=train, weights=weights)
        return x + y if self.adds else y


class ConvNorm(Layer):
    """Convolution, normalisation, ReLU."""

    def __init__(self, conv: Conv, norm: BatchNorm):
        self.conv, self.norm = conv, norm

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C']."""
        return jax.nn.relu(self.norm(self.conv(x), train=train, weights=weights))


class MnasNet(Layer):
    """MnasNet-A1; `blocks1` .. `blocks7` are the rows of the paper's figure.

    Args:
      config: what to build.
      rngs: keys for arrays at once; None declares the weights only (`trainlib.model.weights`).
    """

    def __init__(self, config: MnasNetConfig, *, rngs: Rngs = None):
        self.config = config
        # Stages count the stride of an ImageNet stem, whatever the stem is.
        channels, stage = config.channels(STEM_WIDTH), 1
        stride = 2 if config.stem == "conv" else 1
        height, width = (strided(size, stride) for size in config.size)
        options = {"dtype": config.dtype, "rngs": rngs}
        conv = Conv(3, channels, 3, stride, in_axis="image_channels", **options)
        self.stem = ConvNorm(conv, config.norm(channels, rngs))
        for number, row in enumerate(ROWS, 1):
            blocks = []
            for index in range(config.blocks[number - 1] if config.blocks else row.repeats):
                stride = row.stride if index == 0 else 1
                site = Site(stage, 1, height, width)
                blocks.append(InvertedBlock(config, row, channels, site, stride, rngs=rngs))
                height, width = strided(height, stride), strided(width, stride)
                stage += stride == 2
                channels = config.channels(row.channels)
            setattr(self, f"blocks{number}", nnx.List(blocks))
        conv = Conv(channels, HEAD_WIDTH, 1, **options)
        self.top = ConvNorm(conv, config.norm(HEAD_WIDTH, rngs))
        self.head = Classifier(HEAD_WIDTH, config.num_classes, rngs=rngs)

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
          train: normalise by the batch, move or leave its statistics, and drop features.
          key: of the features that training drops.
          weights: f32 [B], what each image counts in the statistics of training; None: all 1.

        Raises:
          InputError: images of another shape.
          ValueError: training with dropout and without a key.
        """
        check_array("An image model", images, "B H W C", C=3)
        x = self.stem(images.astype(self.config.dtype), train=train, weights=weights)
        for number in range(1, len(ROWS) + 1):
            for block in getattr(self, f"blocks{number}"):
                x = block(x, train=train, weights=weights)
        x = global_average_pool(self.top(x, train=train, weights=weights).astype(jnp.float32))
        if train and self.config.dropout:
            if key is None:
                raise ValueError("Training with dropout needs a random key: pass key=...")
            survives = jax.random.bernoulli(key, 1 - self.config.dropout, x.shape)
            x = jnp.where(survives, x / (1 - self.config.dropout), 0)
        return self.head(x)
