"""Resizing a part of a picture, by matrix products and without rounding between the two axes.

h w of the picture, H W of the result, B results of a block, T taps of a block, all in pixels.

The filters are Pillow's with their antialiasing: a kernel of so many pixels, stretched by the
factor by which the picture shrinks. Sixteen neighbouring results look at much the same pixels; so
an axis is a few small dense products, [B, T] by the pixels, which take a third of the time of a
loop over taps.

All numbers are integers (over powers of two) below 2^24, which float32 holds exactly. So the order
of a sum does not matter, and the products give the same bits with every BLAS.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from vitattn.images import scratch
from vitattn.images.size import Box, Size, sides

# Sums of |weight| of the cubic kernel stay below 1.3. First axis: 255 x 1.3 x 2^14 < 2^23. Its sums
# are rounded to 1/16 of a level. Second axis: 255 x 16 x 1.3 x 2^11 x 1.3 < 2^24.
_FIRST_BITS, _BETWEEN_BITS, _SECOND_BITS = 14, 4, 11

# Weights of 11 bits are too coarse for the many taps of a picture that shrinks more.
MOST_SHRINK = 16.0

_BLOCK = 16  # results of one product


class Taps(NamedTuple):
    """One axis: the results of block b are weights [:, `_blocks(results)[b]`] by the T pixels from
    `pixels[b]` on.

    Attributes:
      pixels: first pixel of each block.
      weights: float32 [T, results], integers over a power of two; those of a result sum to a power
        of two.
    """

    pixels: list[int]
    weights: np.ndarray


@functools.cache
def _blocks(count: int) -> list[slice]:
    """The results of each block."""
    return [slice(start, min(count, start + _BLOCK)) for start in range(0, count, _BLOCK)]


@functools.cache
def _numbers(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of so many results: their numbers, the first and the last of each block."""
    blocks = _blocks(count)
    first, last = np.array([b.start for b in blocks]), np.array([b.stop - 1 for b in blocks])
    return np.arange(count), first, last


def _cubic(away: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2: (1.5 d - 2.5) d^2 + 1 up to a distance d of 1, and
    ((2.5 - 0.5 d) d - 4) d + 2 from there to 2, written without a branch.

    With q = max(2 - d, 0) and u = max(1 - d, 0) it is q^2 (q - 1) / 2 + u^2 (1 - 2 u).
    """
    outer = np.maximum(2 - np.abs(away), 0)
    inner = outer - 1
    weights = outer * outer
    weights *= inner
    weights *= 0.5
    np.maximum(inner, 0, out=inner)
    np.multiply(inner, inner, out=outer)
    inner *= -2
    inner += 1
    outer *= inner
    weights += outer
    return weights


def _linear(away: np.ndarray) -> np.ndarray:
    """The triangle; it ends at a distance of 1."""
    return np.maximum(1 - np.abs(away), 0)


# name -> (kernel, where it ends)
_KERNELS = {"cubic": (_cubic, 2.0), "linear": (_linear, 1.0)}


def taps(
    first: float, last: float, length: int, count: int, kernel: str, bits: int, mirrored: bool
) -> Taps:
    """Returns how the part [first, last] of an axis of `length` pixels becomes `count` pixels; the
    weights of a result sum to 2^bits.

    Pixels beside the part count as far as the kernel reaches, as in Pillow.
    """
    weigh, reach = _KERNELS[kernel]
    scale = (last - first) / count
    stretch = max(scale, 1.0)
    results, starts, ends = _numbers(count)
    centres = first + (results + 0.5) * scale
    if mirrored:
        centres, starts = centres[::-1], ends
    size = min(_BLOCK, count)
    width = min(length, math.ceil((size - 1) * scale + 2 * reach * stretch) + 1)
    pixels = (centres[starts] - reach * stretch).astype(int)  # below 0 it rounds up, to 0
    pixels = np.minimum(np.maximum(pixels, 0), length - width)
    begin = pixels.repeat(_BLOCK)[:count] + 0.5
    away = ((begin - centres) / stretch).astype(np.float32)
    steps = np.arange(width, dtype=np.float32) * np.float32(1 / stretch)
    weights = weigh(steps[:, None] + away)
    one = np.float32(2**bits)
    weights *= one / np.add.reduce(weights)
    np.rint(weights, out=weights)
    # What rounding leaves over goes to the pixel in the middle, so that a flat picture stays so.
    middle = np.minimum(np.maximum((centres - begin + 0.5).astype(int), 0), width - 1)
    weights[middle, results] += one - np.add.reduce(weights)
    return Taps(pixels.tolist(), weights)


def resample(
    pixels: np.ndarray, box: Box, size: Size, kernel: str = "cubic", mirrored: bool = False
) -> np.ndarray:
    """Returns the part `box` of a picture, resized.

    Args:
      pixels: uint8 [h, w, 3].
      box: (left, top, right, bottom) in its pixels.
      size: of the result; at most `MOST_SHRINK` times smaller than the box.
      kernel: "cubic" or "linear".
      mirrored: whether left and right change places.

    Returns:
      Levels from 0 to 255, not rounded, float32 [3, W, H]: planes, columns first.
    """
    high, wide = sides(size)
    left, top, right, bottom = box
    across = taps(left, right, pixels.shape[1], wide, kernel, _SECOND_BITS, mirrored)
    down = taps(top, bottom, pixels.shape[0], high, kernel, _FIRST_BITS, False)
    weights, count = across.weights, len(across.weights)
    weights *= np.float32(2.0 ** -(_SECOND_BITS + _BETWEEN_BITS))
    first, last = min(across.pixels), max(across.pixels) + count
    between = _down(pixels[:, first:last], down, high).transpose(1, 0, 2)
    planes = np.empty((3, wide, high), np.float32)
    for pixel, results in zip(across.pixels, _blocks(wide), strict=True):
        columns = between[:, pixel - first : pixel - first + count]
        np.matmul(weights[:, results].T, columns, out=planes[:, results])
    return np.clip(planes, 0, 255, out=planes)


def _down(pixels: np.ndarray, down: Taps, high: int) -> np.ndarray:
    """Columns of uint8 [h, w, 3] resized to H: sixteenths of a level, integers in float32
    [w, 3, H]."""
    _, wide, channels = pixels.shape
    weights, count = down.weights, len(down.weights)
    weights *= np.float32(2.0 ** (_BETWEEN_BITS - _FIRST_BITS))
    between = scratch.empty("between", (wide * channels, high))
    rows = scratch.empty("rows", (count, wide, channels))
    columns = rows.reshape(count, wide * channels).T
    for pixel, results in zip(down.pixels, _blocks(high), strict=True):
        rows[:] = pixels[pixel : pixel + count]
        np.matmul(columns, weights[:, results], out=between[:, results])
    return np.rint(between, out=between).reshape(wide, channels, high)
