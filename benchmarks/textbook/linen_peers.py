"""Plain networks as a textbook writes them: flax.linen, nn.Conv, nn.BatchNorm, optax.sgd.

Nothing of the project is used here: these are the peers of our own networks, of the same shapes.
Convolutions compute in bfloat16, weights and statistics are float32; padding is symmetric, as in
the public networks.

Letters: B batch, H W map, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

Conv = functools.partial(nn.Conv, use_bias=False, dtype=jnp.bfloat16)
LEARNING_RATE, MOMENTUM = 0.1, 0.9
AROUND: Any = ((1, 1), (1, 1))  # Flax declares a string


def _conv(features: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv:
    side = (size - 1) // 2
    pads = [(side, side)] * 2
    return Conv(features, (size, size), (stride, stride), padding=pads, feature_group_count=groups)


def _norm(train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=jnp.bfloat16)


class Stem(nn.Module):
    """Images [B, H, W, 3] -> [B, H / 4, W / 4, 64]."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """7x7 with stride 2, normalisation, ReLU, 3x3 maximum with stride 2."""
        x = nn.relu(_norm(train)(_conv(64, 7, 2)(x)))
        return nn.max_pool(x, (3, 3), (2, 2), AROUND)


class Bottleneck(nn.Module):
    """[B, H, W, C] -> [B, H / stride, W / stride, 4 channels]."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """1x1, 3x3, 1x1 and the input."""
        y = nn.relu(_norm(train)(_conv(self.channels, 1)(x)))
        y = nn.relu(_norm(train)(_conv(self.channels, 3, self.stride)(y)))
        y = _norm(train)(_conv(4 * self.channels, 1)(y))
        if x.shape != y.shape:
            x = _norm(train)(_conv(4 * self.channels, 1, self.stride)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """Images [B, H, W, 3] -> f32 logits [B, classes]."""

    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """Depths 3, 4, 6, 3."""
        x = Stem()(x, train=train)
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = Bottleneck(64 * 2**stage, stride)(x, train=train)
        return nn.Dense(self.classes)(jnp.mean(x, (1, 2), dtype=jnp.float32))


class WideBlock(nn.Module):
    """[B, H, W, C] -> [B, H / stride, W / stride, channels], pre-activated."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """Two 3x3; where the width changes, the shortcut is averaged and filled up with zeros."""
        active = nn.relu(_norm(train)(x))
        y = _conv(self.channels, 3, self.stride)(active)
        y = _conv(self.channels, 3)(nn.relu(_norm(train)(y)))
        if x.shape != y.shape:
            x = active
            if self.stride > 1:
                x = nn.avg_pool(x, (self.stride,) * 2, (self.stride,) * 2)
            missing = self.channels - x.shape[-1]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        return x + y


class WideResNet28x10(nn.Module):
    """Images [B, 32, 32, 3] -> f32 logits [B, classes]."""

    classes: int = 100
    blocks: int = 4  # of each of the three groups: (depth - 4) / 6

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """A convolution, three groups of blocks, a classifier."""
        x = _conv(16, 3)(x)
        for group in range(3):
            for block in range(self.blocks):
                x = WideBlock(160 * 2**group, 2 if group and not block else 1)(x, train=train)
        x = nn.relu(_norm(train)(x))
        return nn.Dense(self.classes)(jnp.mean(x, (1, 2), dtype=jnp.float32))


class SqueezeExcite(nn.Module):
    """[B, H, W, C] -> the same, times a number in (0, 1) for each image and channel."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Mean, two dense layers, sigmoid."""
        y = jnp.mean(x, (1, 2), dtype=jnp.float32)
        y = nn.Dense(x.shape[-1])(nn.relu(nn.Dense(self.hidden)(y)))
        return x * nn.sigmoid(y).astype(x.dtype)[:, None, None, :]


class InvertedBlock(nn.Module):
    """[B, H, W, C] -> [B, H / stride, W / stride, channels]."""

    channels: int
    expansion: int
    size: int
    stride: int
    squeeze: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """1x1, depthwise, gate, 1x1; plus the input where the shapes are equal."""
        wide, y = x.shape[-1] * self.expansion, x
        if self.expansion > 1:
            y = nn.relu(_norm(train)(_conv(wide, 1)(y)))
        y = nn.relu(_norm(train)(_conv(wide, self.size, self.stride, wide)(y)))
        if self.squeeze:
            y = SqueezeExcite(max(1, int(x.shape[-1] * self.squeeze)))(y)
        y = _norm(train)(_conv(self.channels, 1)(y))
        return x + y if x.shape == y.shape else y


# repeats, expansion, kernel, channels, stride, squeeze: figure 7 of arXiv 1807.11626
MNASNET_ROWS = (
    (1, 1, 3, 16, 1, 0.0),
    (2, 6, 3, 24, 2, 0.0),
    (3, 3, 5, 40, 2, 0.25),
    (4, 6, 3, 80, 2, 0.0),
    (2, 6, 3, 112, 1, 0.25),
    (3, 6, 5, 160, 2, 0.25),
    (1, 6, 3, 320, 1, 0.0),
)


class MnasNetA1(nn.Module):
    """Images [B, 224, 224, 3] -> f32 logits [B, classes]."""

    classes: int = 1000
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """Seven rows of blocks."""
        x = nn.relu(_norm(train)(_conv(32, 3, 2)(x)))
        for repeats, expansion, size, channels, stride, squeeze in MNASNET_ROWS:
            for block in range(repeats):
                here = 1 if block else stride
                x = InvertedBlock(channels, expansion, size, here, squeeze)(x, train=train)
        x = nn.relu(_norm(train)(_conv(1280, 1)(x)))
        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.mean(x, (1, 2), jnp.float32))
        return nn.Dense(self.classes)(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": ResNet50,
    "wrn28_10": WideResNet28x10,
    "mnasnet": MnasNetA1,
}


def train_step(
    name: str, batch: int, pixels: int
) -> tuple[Callable[..., Any], tuple[Any, Any, Any]]:
    """The train step `(state, batch, key) -> (state, loss)` of a network, and its arguments as
    shapes.

    Args:
      name: a key of `MODELS`.
      batch: B.
      pixels: of the square image.
    """
    model = MODELS[name]()
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)
    images = jax.ShapeDtypeStruct((batch, pixels, pixels, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def initial(key: jax.Array, images: jax.Array) -> Any:
        variables = model.init(key, images, train=False)
        return variables["params"], variables["batch_stats"], optimizer.init(variables["params"])

    def step(state: Any, data: Any, key: jax.Array) -> Any:
        params, stats, moved = state
        images, labels = data

        def loss(params: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            logits, new = model.apply(
                variables, images, mutable=["batch_stats"], rngs={"dropout": key}
            )
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return each.mean(), new["batch_stats"]

        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moved = optimizer.update(gradients, moved)
        return (optax.apply_updates(params, updates), stats, moved), value

    return step, (jax.eval_shape(initial, key, images), (images, labels), key)
