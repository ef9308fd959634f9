"""Whether all boxes of a file together are really [x, y, width, height] in pixels.

A single box says little; thousands of boxes that never reach over the edge of their images when
they are read in another way, and often do when they are read as they should be, say a lot.
n boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_FITS = 0.999  # of the boxes: this reading is right
_MISFITS = 0.05  # of the boxes: the reading as they should be is doubted
_LOST = 0.5  # of the boxes: whatever they are, they are not of these images
_FEWEST = 3  # boxes: fewer over the edge are single mistakes
_SLACK = 1.0  # pixels over the edge that rounding explains


class Doubt(NamedTuple):
    """Why the boxes are not what they should be: a trap of `report.TRAPS`, and the figures."""

    trap: str
    figures: str


def doubt(boxes: np.ndarray, sizes: np.ndarray) -> Doubt | None:
    """Looks at all boxes of a file.

    Args:
      boxes: f64 [n, 4], finite, as they were given.
      sizes: i32 [n, 2], height and width of the image of each; 0 where they are not known.

    Returns:
      None if they can be [x, y, width, height].
    """
    if not len(boxes):
        return None
    known = np.all(sizes > 0, axis=-1)
    limit = np.where(known[:, None], sizes[:, ::-1], np.inf)  # width, height
    first, second = boxes[:, :2], boxes[:, 2:]
    small = (np.abs(boxes) <= 1).all(-1) & (~known | (sizes > 2).all(-1))
    if len(boxes) >= 5 and small.mean() >= _FITS and np.any(boxes % 1 != 0):
        return Doubt("fractions", f"{small.sum():,} of {len(boxes):,} are at most 1")
    over = _outside(first, first + second, limit)
    if over.sum() < _FEWEST or over.mean() < _MISFITS:
        return None
    # Of one large object in each image this is true as well, but those do not reach over the edge.
    ordered = (second > first).all(-1) & ~_outside(first, second, limit)
    if ordered.mean() >= _FITS:
        return Doubt(
            "corners",
            f"in {ordered.sum():,} of {len(boxes):,} the third number is larger than the first and "
            f"the fourth than the second, and read as they should be {over.sum():,} are outside",
        )
    turned = ~_outside(first[:, ::-1], (first + second)[:, ::-1], limit)
    centred = ~_outside(first - second / 2, first + second / 2, limit)
    for trap, fits in (("swapped", turned), ("centres", centred)):
        if fits.mean() >= _FITS and known.all():
            return Doubt(
                trap, f"read so {fits.sum():,} of {len(boxes):,} fit, else {over.sum():,} do not"
            )
    if over.mean() >= _LOST:
        return Doubt("misfit", f"{over.sum():,} of {len(boxes):,} are outside")
    return None


def _outside(low: np.ndarray, high: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Whether boxes reach over the edge, bool [n], of corners (x, y) and (width, height) [n, 2]."""
    return np.any((low < -_SLACK) | (high > limit + _SLACK), axis=-1)
