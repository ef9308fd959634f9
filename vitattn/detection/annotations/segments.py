"""The box around a polygon or a mask, for annotations that have no box.

A mask is run lengths (RLE): the numbers of pixels outside, inside, outside and so on, down the
columns, as a list or in COCO's compressed text (6 bits a character, cocoapi `rleFrString`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitattn.images.decode import MAX_PIXELS

Box = tuple[float, float, float, float]  # x, y, width, height

_MOST_RUNS = 2**22


class NoSegment(Exception):
    """What stands there cannot be read; the message says why."""


def box_of(segmentation: Any) -> tuple[Box, str]:
    """Returns the box around a segmentation, and "polygon" or "mask".

    Raises:
      NoSegment: it is neither.
    """
    if isinstance(segmentation, dict):
        return _of_mask(segmentation), "mask"
    if isinstance(segmentation, list):
        return _of_polygons(segmentation), "polygon"
    raise NoSegment("it is neither a list of polygons nor run lengths")


def _of_polygons(polygons: list[Any]) -> Box:
    """The box around polygons, each [x, y, x, y, ...]."""
    numbers: list[float] = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise NoSegment("a polygon is not x, y, x, y, ... of three points or more")
        if not set(map(type, polygon)) <= {int, float}:
            raise NoSegment("a polygon holds something that is no number")
        numbers += polygon
    if not numbers:
        raise NoSegment("it has no polygon")
    points = np.asarray(numbers, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise NoSegment("a polygon holds NaN or infinity")
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return left, top, right - left, bottom - top


def _of_mask(mask: dict[str, Any]) -> Box:
    """The box around the pixels inside, as cocoapi's `rleToBbox`."""
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int for n in size):
        raise NoSegment("the size of a mask is not its height and width")
    height, width = size
    if min(size) < 1 or height * width > MAX_PIXELS:
        raise NoSegment(f"a mask cannot have {width}x{height} pixels")
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(n) is int and n >= 0 for n in runs):
        raise NoSegment("the counts of a mask are no whole numbers")
    ends = np.cumsum(np.asarray([0, *runs], np.float64))
    if ends[-1] != height * width:
        raise NoSegment("the counts of a mask do not add up to its size")
    first, last = ends[1:-1:2].astype(np.int64), ends[2::2].astype(np.int64)
    inside = last > first
    first, last = first[inside], last[inside] - 1
    if not len(first):
        raise NoSegment("the mask is empty")
    across = (first // height != last // height).any()
    top, bottom = (0, height - 1) if across else ((first % height).min(), (last % height).max())
    left, right = (first // height).min(), (last // height).max()
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def _uncompressed(text: str) -> list[int]:
    """The counts in a compressed text.

    A number is 5 bits a character, the lowest first, a character being 48 more; bit 5 says that
    more follows, bit 4 of the last one is the sign. From the fourth on, they are differences to the
    count two before.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 40 or len(counts) > _MOST_RUNS:
            raise NoSegment("the counts of a mask are not in COCO's compressed form")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise NoSegment("the counts of a mask are cut off")
    return counts
