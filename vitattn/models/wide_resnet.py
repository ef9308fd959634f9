"""Wide residual networks for small images, and their attention-augmented versions.

Letters: B batch, H W image, C channels, k widening factor.

WRN-d-k (Zagoruyko & Komodakis 2016, arXiv 1605.07146) has pre-activation blocks of two 3x3
convolutions in three groups of (d - 4) / 6 blocks, at full, half and quarter resolution, of widths
16k, 32k and 64k. Shortcuts have no parameters: 2x2 average pool and channels of zeros, the only
reading that gives the 36.3 M parameters of arXiv 1904.09925, table 1. There attention augments the
first convolution of every block.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.errors import ConfigError
from trainlib.keys import check_fields, whole
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer
from vitattn.images.size import sides, strided
from vitattn.layers.attention import Site
from vitattn.layers.augmented import AugmentedConfig
from vitattn.layers.conv import Classifier, Conv
from vitattn.layers.norm import BatchNorm, Weights
from vitattn.layers.pool import average_pool, global_average_pool
from vitattn.layers.squeeze import BETWEEN_STAGES, Gate, make_gate
from vitattn.models.resnet import config as fields

GROUPS = (2, 3, 4)  # conv2_x .. conv4_x, as the paper of the network names them
GROUP_WIDTHS = (16, 32, 64)
Rngs = nnx.Rngs | None  # keys for arrays at once; None declares the weights only


@dataclasses.dataclass(frozen=True)
class WideResNetConfig:
    """Everything that defines a wide residual network.

    Attributes:
      depth: 6 n + 4, with n blocks in each group.
      widening: k, the multiplier of the widths 16, 32 and 64.
      num_classes: logits.
      image_size: pixels of the (square) image, or (height, width): relative positions depend on it.
      attention: what augments the first convolution of each block.
      gate: "none"; "se", "cbam", "gala" or "gather_excite" at the end of each residual branch; or
        "bam" after every group but the last.
      gate_ratio: channels of the branch over those within the gate.
      dtype: compute type, "float32" or "bfloat16".
      bn_decay: of running statistics.
      bn_eps: added to variances.
    """

    # Attention as arXiv 1904.09925 has it in wide residual networks.
    PRESETS: ClassVar = (AugmentedConfig(stages=GROUPS, downsample=()),)

    depth: Annotated[int, whole(10, 2000)] = 28
    widening: Annotated[int, whole(1, 1000)] = 10
    num_classes: fields.Classes = 100
    image_size: fields.Pixels = 32
    attention: AugmentedConfig | None = None
    gate: fields.GateName = "none"
    gate_ratio: fields.Ratio = 16
    dtype: fields.DType = "float32"
    bn_decay: fields.Share = 0.9
    bn_eps: fields.Epsilon = 1e-5

    def __post_init__(self):
        check_fields(self, "model")
        fields.check_stages(self.attention, GROUPS)
        if (self.depth - 4) % 6:
            near = max(10, round((self.depth - 4) / 6) * 6 + 4)
            raise ConfigError(
                f"model.depth={self.depth} is no depth of a wide residual network: it is 6 n + 4, "
                f"with n blocks in each group. Nearest: {near}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return sides(self.image_size)

    def make_gate(self, channels: int, *, rngs: Rngs = None) -> Gate:
        """The gate of a residual branch, or of a group, of so many channels."""
        return make_gate(
            self.gate,
            channels,
            ratio=self.gate_ratio,
            decay=self.bn_decay,
            eps=self.bn_eps,
            dtype=self.dtype,
            rngs=rngs,
        )

    def norm(self, channels: int, rngs: Rngs = None) -> BatchNorm:
        """A normalisation."""
        return BatchNorm(channels, decay=self.bn_decay, eps=self.bn_eps, rngs=rngs)


def widen(x: jax.Array, channels: int, stride: int) -> jax.Array:
    """Shortcut without parameters: averages stride x stride pixels, adds channels of zeros.

    [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), channels], in the type of x.

    As many zeros come before the channels as after them. The last window of an odd map averages the
    pixels that exist, so the size is that of a strided convolution.
    """
    if stride > 1:
        missing = [-size % stride for size in x.shape[1:3]]
        if any(missing):  # the gradient of a pad by nothing is not nothing
            x = jnp.pad(x, ((0, 0), *((0, n) for n in missing), (0, 0)), mode="edge")
        x = average_pool(x, stride, stride)
    missing = channels - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class WideBlock(Layer):
    """Normalise, ReLU, 3x3 (with the stride, and the attention), and again without; plus the input.

    Where the width changes, the shortcut starts after the first ReLU (shared pre-activation).
    """

    def __init__(
        self,
        config: WideResNetConfig,
        in_channels: int,
        channels: int,
        site: Site,
        *,
        rngs: Rngs = None,
    ):
        options = {"dtype": config.dtype, "rngs": rngs}
        self.channels, self.stride = channels, site.stride
        self.changes = in_channels != channels
        self.norm1 = config.norm(in_channels, rngs)
        attention = config.attention
        if attention is not None and site.stage in attention.stages:
            self.conv1 = attention.layer(in_channels, channels, site, **options)
        else:
            self.conv1 = Conv(in_channels, channels, 3, site.stride, **options)
        self.norm2 = config.norm(channels, rngs)
        self.conv2 = Conv(channels, channels, 3, **options)
        self.gated = config.gate not in ("none", *BETWEEN_STAGES)
        if self.gated:
            self.gate = config.make_gate(channels, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool = False, weights: Weights = None) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C']."""
        active = jax.nn.relu(self.norm1(x, train=train, weights=weights))
        y = jax.nn.relu(self.norm2(self.conv1(active), train=train, weights=weights))
        y = self.conv2(y)
        if self.gated:
            y = self.gate(y, train=train, weights=weights)
        return y + (widen(active, self.channels, self.stride) if self.changes else x)


class WideResNet(Layer):
    """Wide residual network; its groups are the attributes conv2_x .. conv4_x, lists of blocks.

    Args:
      config: what to build.
      rngs: keys for arrays at once; None declares the weights only (`trainlib.model.weights`).
    """

    def __init__(self, config: WideResNetConfig, *, rngs: Rngs = None):
        self.config = config
        channels = GROUP_WIDTHS[0]
        self.stem = Conv(3, channels, 3, in_axis="image_channels", dtype=config.dtype, rngs=rngs)
        height, width = config.size
        for group, base in zip(GROUPS, GROUP_WIDTHS, strict=True):
            blocks = []
            for index in range((config.depth - 4) // 6):
                stride = 2 if index == 0 and group > GROUPS[0] else 1
                height, width = strided(height, stride), strided(width, stride)
                site = Site(group, stride, height, width)
                blocks.append(WideBlock(config, channels, base * config.widening, site, rngs=rngs))
                channels = base * config.widening
            if config.gate in BETWEEN_STAGES and group < GROUPS[-1]:
                blocks.append(config.make_gate(channels, rngs=rngs))
            setattr(self, f"conv{group}_x", nnx.List(blocks))
        self.norm = config.norm(channels, rngs)
        self.head = Classifier(channels, config.num_classes, rngs=rngs)

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
        check_array("An image model", images, "B H W C", C=3)
        x = self.stem(images.astype(self.config.dtype))
        for group in GROUPS:
            for block in getattr(self, f"conv{group}_x"):
                x = block(x, train=train, weights=weights)
        x = jax.nn.relu(self.norm(x, train=train, weights=weights))
        return self.head(global_average_pool(x.astype(jnp.float32)))
