"""Resizing a part of a picture, by matrix products and without rounding between the two axes.

h w of the picture, H W of the result, B results of a block, T taps of a block, all in pixels.

The filters are Pillow's with their antialiasing: a kernel of so many pixels, stretched by the
factor by which the picture shrinks. Sixteen neighbouring results look at much the same pixels; so
an axis is a few small dense products, [B, T] by the pixels, which take a third of the time of a
loop over taps.

All numbers are integers (over powers of two) below 2^24, which float32 holds exactly. So the order
of a sum does not matter, and a picture has the same bits with every BLAS on every processor.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    """One axis: results b * B to b * B + B are weights [:, those results] by the T pixels from
    `pixels[b]` on.

    Attributes:
      pixels: first pixel of each block.
      weights: float32 [T, results], integers; those of a result sum to a power of two.
    """

    pixels: list[int]
    weights: np.ndarray

    def blocks(self, unit: float) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yields the pixels, the results and the weights [T, B] of each block, in units."""
        count, results = self.weights.shape
        weights = self.weights * np.float32(unit)
        for number, pixel in enumerate(self.pixels):
            block = slice(number * _BLOCK, min(results, number * _BLOCK + _BLOCK))
            yield slice(pixel, pixel + count), block, weights[:, block]


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
    """Returns how the part [first, last] of an axis of `length` pixels becomes `count` pixels.

    Pixels beside the part count as far as the kernel reaches, as in Pillow.
    """
    weigh, reach = _KERNELS[kernel]
    scale = (last - first) / count
    stretch = max(scale, 1.0)
    results = np.arange(count)
    centres = first + ((results[::-1] if mirrored else results) + 0.5) * scale
    starts = np.arange(0, count, _BLOCK)
    ends = np.minimum(starts + _BLOCK, count) - 1
    size = min(_BLOCK, count)
    width = min(length, int(np.ceil((size - 1) * scale + 2 * reach * stretch)) + 1)
    lowest = centres[ends] if mirrored else centres[starts]
    pixels = np.floor(lowest - reach * stretch).astype(int).clip(0, length - width)
    begin = pixels.repeat(_BLOCK)[:count]
    away = ((begin + 0.5 - centres) / stretch).astype(np.float32)
    step = np.float32(1 / stretch)
    weights = weigh(np.arange(width, dtype=np.float32)[:, None] * step + away)
    one = np.float32(2**bits)
    weights *= one / weights.sum(0)
    np.rint(weights, out=weights)
    # What rounding leaves over goes to the pixel in the middle, so that a flat picture stays so.
    middle = np.clip(centres.astype(int) - begin, 0, width - 1)
    weights[middle, results] += one - weights.sum(0)
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
    down = taps(top, bottom, pixels.shape[0], high, kernel, _FIRST_BITS, False)
    across = taps(left, right, pixels.shape[1], wide, kernel, _SECOND_BITS, mirrored)
    first, last = min(across.pixels), max(across.pixels) + len(across.weights)
    between = _down(pixels[:, first:last], down, high)
    planes = np.empty((3, wide, high), np.float32)
    for part, results, weights in across.blocks(2.0 ** -(_SECOND_BITS + _BETWEEN_BITS)):
        columns = between[part.start - first : part.stop - first]
        np.matmul(weights.T, columns.transpose(1, 0, 2), out=planes[:, results])
    return np.clip(planes, 0, 255, out=planes)


def _down(pixels: np.ndarray, down: Taps, high: int) -> np.ndarray:
    """Columns of uint8 [h, w, 3] resized to H: sixteenths of a level, integers in float32
    [w, 3, H]."""
    _, wide, channels = pixels.shape
    between = scratch.empty("between", (wide * channels, high))
    rows = scratch.empty("rows", (len(down.weights), wide, channels))
    columns = rows.reshape(len(rows), wide * channels).T
    for part, results, weights in down.blocks(2.0 ** (_BETWEEN_BITS - _FIRST_BITS)):
        rows[:] = pixels[part]
        np.matmul(columns, weights, out=between[:, results])
    return np.rint(between, out=between).reshape(wide, channels, high)
