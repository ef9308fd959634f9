"""Detections in pixels of the picture that was given, and as COCO's result format.

n detections of one picture. Inside the framework a box is y0 x0 y1 x1, outside it is x0 y0 x1 y1,
and in COCO's files x, y, width, height.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def in_original(boxes: np.ndarray, scale: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Returns boxes of the network's image in pixels of the original, cut to it.

    Args:
      boxes: [n, 4], y0 x0 y1 x1.
      scale: [2], pixels of the network's image over those of the original, y and x.
      original: [2], height and width.

    Returns:
      f64 [n, 4], y0 x0 y1 x1; what is not finite stays so.
    """
    scaled = np.asarray(boxes, np.float64) / np.tile(np.asarray(scale, np.float64), 2)
    return np.clip(scaled, 0.0, np.tile(np.asarray(original, np.float64), 2))


def as_xyxy(boxes: np.ndarray) -> np.ndarray:
    """[n, 4] y0 x0 y1 x1 -> x0 y0 x1 y1."""
    return boxes[..., [1, 0, 3, 2]]


def as_xywh(boxes: np.ndarray) -> np.ndarray:
    """[n, 4] y0 x0 y1 x1 -> x, y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate((low[..., ::-1], (high - low)[..., ::-1]), axis=-1)


def coco_results(
    image_id: int | str,
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Returns the detections of one picture as COCO's result format, in plain numbers.

    Args:
      image_id: of the picture.
      boxes: [n, 4], y0 x0 y1 x1 in pixels of the original.
      scores: [n].
      classes: [n], numbers of classes.
      category_ids: that of each class.
    """
    return [
        {"image_id": image_id, "category_id": int(category_ids[n]), "bbox": box, "score": score}
        for n, box, score in zip(
            classes.tolist(), as_xywh(boxes).tolist(), scores.tolist(), strict=True
        )
    ]
