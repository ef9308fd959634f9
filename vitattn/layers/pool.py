"""Pooling and resizing of maps in NHWC.

Letters: B batch, H W map, C channels.

Windows are padded as convolutions are: (window - 1) / 2 on each side for an odd window, nothing
for an even one. An average at the border divides by the number of pixels that lie inside the map,
so a constant map stays constant (count_include_pad=False elsewhere); a padded pixel never wins a
maximum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from trainlib.sharding.constrain import platform


def _side(window: int) -> int:
    """Pixels that a window has beyond the border, on each side."""
    return (window - 1) // 2 if window % 2 else 0


def _inside(size: int, window: int, stride: int) -> np.ndarray:
    """The number of pixels of an axis that lie in each of its windows."""
    side = _side(window)
    starts = np.arange((size + 2 * side - window) // stride + 1) * stride - side
    return np.minimum(starts + window, size) - np.maximum(starts, 0)


def _average_over(x: jax.Array, axis: int, inside: np.ndarray) -> jax.Array:
    """Sums of windows along an axis, over the numbers of their pixels."""
    shape = [1] * x.ndim
    shape[axis] = len(inside)
    return x * (1.0 / inside).astype(np.float32).reshape(shape)


def _taps(x: jax.Array, axis: int, window: int, stride: int, fill: float) -> list[jax.Array]:
    """The `window` strided slices along one axis."""
    size, side = x.shape[axis], _side(window)
    steps = (size + 2 * side - window) // stride + 1
    pads = [(0, 0, 0)] * x.ndim
    reach = (steps - 1) * stride + window  # may stop short of the padded edge, or of the map's
    pads[axis] = (side, reach - size - side, 0)
    padded = jax.lax.pad(x, jnp.asarray(fill, x.dtype), pads)
    last = (steps - 1) * stride + 1
    return [jax.lax.slice_in_dim(padded, tap, tap + last, stride, axis) for tap in range(window)]


@jax.named_scope("average_pool")
def average_pool(x: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C] for odd windows; sums in float32.

    On CPU separable: 2 * window slices and additions, whose gradients are pads, where a window
    reduction is a slow loop. On an accelerator it is that reduction: on a TPU a quarter of the time
    of slices with a stride along the pixels.
    """
    y = x.astype(jnp.float32)
    whole = platform() != "cpu"
    if whole:
        y = _over_windows(y, jax.lax.add, 0.0, window, stride)
    for axis in (1, 2):
        inside = _inside(x.shape[axis], window, stride)
        if not whole:
            y = functools.reduce(jnp.add, _taps(y, axis, window, stride, 0.0))
        y = _average_over(y, axis, inside)
    return y.astype(x.dtype)


@jax.named_scope("max_pool")
def max_pool(x: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C] for odd windows.

    On CPU separable as `average_pool`: a twelfth of the time of XLA's window reduction, both passes
    together. Pixels that tie share the gradient. On an accelerator it is that window reduction, and
    the first of the pixels that tie, row by row, has all of the gradient.
    """
    if platform() != "cpu":
        return _over_windows(x, jax.lax.max, -np.inf, window, stride)
    for axis in (1, 2):
        x = functools.reduce(jnp.maximum, _taps(x, axis, window, stride, -jnp.inf))
    return x


def _over_windows(
    x: jax.Array, operation: Callable[..., jax.Array], start: float, window: int, stride: int
) -> jax.Array:
    """XLA's reduction of windows; what is padded counts as `start`."""
    side = _side(window)
    pads = ((0, 0), (side, side), (side, side), (0, 0))
    size, strides = (1, window, window, 1), (1, stride, stride, 1)
    # A constant of NumPy: of another start it is not seen that the reduction has a gradient.
    return jax.lax.reduce_window(x, np.asarray(start, x.dtype), operation, size, strides, pads)


@jax.named_scope("global_average_pool")
def global_average_pool(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, C], mean in float32."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)


@jax.named_scope("bilinear_resize")
def bilinear_resize(x: jax.Array, height: int, width: int) -> jax.Array:
    """[B, H, W, C] -> [B, height, width, C] with half-pixel centres, edge pixels repeated."""
    if x.shape[1:3] == (height, width):
        return x
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


@jax.named_scope("double")
def double(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 2 H, 2 W, C], each pixel four times (the nearest one).

    On a TPU as sums of windows of the map with zeros between its pixels, each of one pixel: with
    its gradient, then a sum of windows too, 0.11 ms of a v5e for 8 maps of 80 x 80 pixels and 256
    channels, where a broadcast and the sum of its parts take 0.44 ms.
    """
    batch, height, width, channels = x.shape
    if platform() == "tpu":
        zero = np.asarray(0, x.dtype)
        sides = ((0, 0), (1, 1), (1, 1), (0, 0))
        apart = (1, 2, 2, 1)
        return jax.lax.reduce_window(
            x, zero, jax.lax.add, apart, (1, 1, 1, 1), sides, base_dilation=apart
        )
    x = jnp.broadcast_to(
        x.reshape(batch, height, 1, width, 1, channels), (batch, height, 2, width, 2, channels)
    )
    return x.reshape(batch, 2 * height, 2 * width, channels)
