"""The heads of a RetinaNet: for each anchor the logits of the classes and the offsets of its box.

Letters: B batch, h w the map of a level, F width, A anchors a location, C classes, O outputs an
anchor.

A head is a tower of 3x3 convolutions, each with a normalisation and a ReLU, and a predictor. All
levels share its convolutions. Batch normalisation is one for each level, whose statistics differ
(that is what the public TPU models have); group normalisation is shared as well, and the
convolution before it has no bias (as in torchvision's second RetinaNet).

With attention (arXiv 1906.05909, section 4.2) a layer of attention in windows stands for each
convolution, normalised as these are, and the predictor is one more such layer and a 1x1
convolution. That reading has the 22.0 M parameters that the paper prints, as long as the pyramid
keeps its convolutions; with attention there as well, of which the text speaks, it is 20.0 M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.model.layer import Layer
from trainlib.model.weights import Initializer, declare
from vitattn.layers.conv import Conv, convolve
from vitattn.layers.group_norm import GroupNorm
from vitattn.layers.init import LECUN_NORMAL, ZEROS
from vitattn.layers.local import LocalAttention
from vitattn.layers.norm import Weights
from vitattn.models.retinanet.config import HEADS, WINDOW, RetinaNetConfig
from vitattn.models.retinanet.pyramid import level_norm

Rngs = nnx.Rngs | None  # keys for arrays at once; None declares the weights only

NORMAL = jax.nn.initializers.normal(0.01)
MOST_GROUPS = 32
BOX = 4  # offsets y, x, h, w of a box


def _attention_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Queries and keys as in other layers of attention, values N(0, 0.01) (the paper's heads)."""
    inputs, outputs = shape[0], shape[1] // 3
    one, other = jax.random.split(key)
    queries_and_keys = LECUN_NORMAL(one, (inputs, 2 * outputs), dtype)
    return jnp.concatenate([queries_and_keys, NORMAL(other, (inputs, outputs), dtype)], 1)


def _attention(config: RetinaNetConfig, rngs: Rngs) -> LocalAttention:
    return LocalAttention(
        config.features,
        config.features,
        num_heads=HEADS,
        window=WINDOW,
        init=_attention_init,
        dtype=config.dtype,
        rngs=rngs,
    )


class TowerLayer(Layer):
    """A layer of a head on the maps of all levels: [B, h, w, F] -> the same, one each."""

    def __init__(self, config: RetinaNetConfig, *, rngs: Rngs = None):
        if config.head_attention != "none":
            self.conv = _attention(config, rngs)
        else:
            self.conv = Conv(
                config.features,
                config.features,
                3,
                init=NORMAL,
                bias_init=None if config.head_norm == "group" else ZEROS,
                dtype=config.dtype,
                rngs=rngs,
            )
        self.normalised = config.head_norm
        if config.head_norm == "group":
            groups = math.gcd(MOST_GROUPS, config.features)
            self.norm = GroupNorm(config.features, groups=groups, eps=config.bn_eps, rngs=rngs)
        elif config.head_norm == "batch":
            self.norm = nnx.List([level_norm(config, rngs=rngs) for _ in config.levels])

    def __call__(
        self, maps: Sequence[jax.Array], *, train: bool = False, weights: Weights = None
    ) -> list[jax.Array]:
        """Maps of the levels -> the same shapes; `weights` [B] are for statistics of training."""
        if isinstance(self.conv, Conv):
            centred = train and self.normalised == "batch"
            outputs = [self.conv(x, centred=centred) for x in maps]
        else:
            outputs = [self.conv(x) for x in maps]
        if self.normalised == "none":
            normal = outputs
        elif isinstance(self.norm, GroupNorm):
            normal = [self.norm(x) for x in outputs]
        else:
            pairs = zip(self.norm, outputs, strict=True)
            normal = [norm(x, train=train, weights=weights) for norm, x in pairs]
        return [jax.nn.relu(x) for x in normal]


class Predictor(Layer):
    """The last layer of a head: [B, h, w, F] -> f32 [B, h, w, A * O], anchor after anchor.

    Args:
      config: what to build.
      outputs: O.
      axis: logical name of the outputs.
      init: initialiser of the kernel.
      bias_init: initialiser of the bias.
      rngs: keys for arrays at once; None declares the weights only (`trainlib.model.weights`).
    """

    def __init__(
        self,
        config: RetinaNetConfig,
        outputs: int,
        axis: str,
        init: Initializer,
        bias_init: Initializer,
        *,
        rngs: Rngs = None,
    ):
        self.dtype = jnp.dtype(config.dtype)
        self.attends = config.head_attention != "none"
        if self.attends:
            self.attention = _attention(config, rngs)
        size, last = 1 if self.attends else 3, (config.num_anchors, outputs)
        axes = ("height", "width", "conv_in", "anchors", axis)
        self.kernel = declare((size, size, config.features, *last), axes, init, rngs)
        self.bias = declare(last, ("anchors", axis), bias_init, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, F] -> f32 [B, h, w, A * O]."""
        if self.attends:
            x = self.attention(x)
        kernel = self.kernel[...].astype(self.dtype)
        y = convolve(x.astype(self.dtype), kernel.reshape(*kernel.shape[:3], -1))
        return y.astype(jnp.float32) + self.bias[...].reshape(-1)


class Head(Layer):
    """One head on the maps of all levels: [B, h, w, F] -> f32 [B, h, w, A * O], one each."""

    def __init__(
        self,
        config: RetinaNetConfig,
        outputs: int,
        axis: str,
        init: Initializer,
        bias_init: Initializer,
        *,
        rngs: Rngs = None,
    ):
        layers = range(config.head_layers)
        self.tower = nnx.List([TowerLayer(config, rngs=rngs) for _ in layers])
        self.predictor = Predictor(config, outputs, axis, init, bias_init, rngs=rngs)

    def __call__(
        self, maps: Sequence[jax.Array], *, train: bool = False, weights: Weights = None
    ) -> list[jax.Array]:
        """Maps of the levels -> what is predicted for their anchors."""
        for layer in self.tower:
            maps = layer(maps, train=train, weights=weights)
        return [self.predictor(x) for x in maps]


class Heads(Layer):
    """Both heads. Kernels of the classes start at 0 and their biases so that each class has the
    probability `prior` everywhere: background is not learnt first, at the cost of all else
    (arXiv 1708.02002, section 4.1).
    """

    def __init__(self, config: RetinaNetConfig, *, rngs: Rngs = None):
        prior = jax.nn.initializers.constant(-math.log((1 - config.prior) / config.prior))
        self.classes = Head(config, config.num_classes, "classes", ZEROS, prior, rngs=rngs)
        self.boxes = Head(config, BOX, "sides", NORMAL, ZEROS, rngs=rngs)

    def __call__(
        self, maps: Sequence[jax.Array], *, train: bool = False, weights: Weights = None
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Maps of the levels [B, h, w, F] -> logits f32 [B, h, w, A * C] and offsets f32
        [B, h, w, A * 4] of each.
        """
        classes = self.classes(maps, train=train, weights=weights)
        return classes, self.boxes(maps, train=train, weights=weights)
