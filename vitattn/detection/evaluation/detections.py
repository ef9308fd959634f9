"""What a detector found on a split, as columns: d detections."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Detections(NamedTuple):
    """Detections of a split: by record, and of one image by score, the best first.

    Attributes:
      records: i64 [d], whose image.
      boxes: f64 [d, 4], x y width height in pixels of the original image.
      scores: f64 [d].
      classes: i64 [d], outputs of the model.
    """

    records: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def at(self, chosen: np.ndarray) -> Detections:
        """Those that an array of numbers or of bools [d] picks."""
        return Detections(*(column[chosen] for column in self))
