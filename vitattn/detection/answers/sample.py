"""What a detector finds in a held-out image beside what is there.

n true boxes, m detections; boxes are y0 x0 y1 x1 in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from trainlib.report.samples import Compared, Picture, Sample
from vitattn.detection.answers.drawing import draw
from vitattn.detection.answers.pictures import whole
from vitattn.detection.answers.results import as_xyxy
from vitattn.detection.data.source import BoxedExample

LEAST = 0.3  # score from which a detection is shown and counted
OVERLAP = 0.5  # intersection over union from which a detection is of an object (PASCAL VOC)


def sample(
    example: BoxedExample,
    outputs: Mapping[str, np.ndarray],
    names: Sequence[str],
    seen: Image.Image,
) -> Sample:
    """Returns true and found boxes on the image as it lies on the disk, and how many objects of
    each class were found; see `vitattn.task.Task.sample`.
    """
    shown = outputs["scores"] >= LEAST
    boxes, scores, classes = (outputs[n][shown] for n in ("boxes", "scores", "classes"))
    single = ~np.asarray(example.crowd, bool)
    true_boxes, true_classes = example.boxes[single], example.classes[single]
    partners = matched(boxes, classes, true_boxes, true_classes)
    picture, nothing = whole(example.image), np.full(len(true_boxes), np.nan)
    true = draw(picture, as_xyxy(true_boxes), nothing, true_classes, names)
    found = draw(picture, as_xyxy(boxes), scores, classes, names)
    return Sample(
        "",
        compared=tuple(_counted(classes, partners, true_classes, names)),
        pictures=(
            Picture.of(f"the truth, {len(true_boxes)} boxes", true),
            Picture.of(f"what is found, {len(boxes)} boxes from the score {LEAST:g} on", found),
        ),
    )


def matched(
    boxes: np.ndarray, classes: np.ndarray, true_boxes: np.ndarray, true_classes: np.ndarray
) -> np.ndarray:
    """Returns which true box each detection is of, i64 [m], -1 for none: the best detection first
    takes the box of its class that it overlaps most, by at least `OVERLAP`, and each is taken once.

    Args:
      boxes: [m, 4], the best first.
      classes: [m].
      true_boxes: [n, 4].
      true_classes: [n].
    """
    shares = _overlaps(boxes, true_boxes) * (classes[:, None] == true_classes)
    partners = np.full(len(boxes), -1)
    for number, row in enumerate(shares):
        if row.size and row.max() >= OVERLAP:
            partners[number] = best = row.argmax()
            shares[:, best] = 0
    return partners


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union f64 [m, n] of boxes [m, 4] and [n, 4] that have an area."""
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.prod(np.maximum(high - low, 0), -1, dtype=np.float64)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], -1, dtype=np.float64) for boxes in (a, b)]
    return common / (areas[0][:, None] + areas[1] - common)


def _counted(
    classes: np.ndarray, partners: np.ndarray, true_classes: np.ndarray, names: Sequence[str]
) -> list[Compared]:
    """A row for each class that is there or found."""
    rows = []
    for number in map(int, np.union1d(classes, true_classes)):
        true = int((true_classes == number).sum())
        found = int(((classes == number) & (partners >= 0)).sum())
        more = int((classes == number).sum()) - found
        words = f"{found} found" + (f", {more} that are none" if more else "")
        rows.append(Compared(names[number], str(true), words, found == true and not more))
    return rows
