"""Average precision by loops, written from the definition alone: a second reference beside
pycocotools.

A detection is right if its best overlap with a box of its class and image that no better scored
detection has taken is at least the threshold. What overlaps a crowd by that share of its own area,
and is not right, does not count. Precision at a level of recall is the highest at that level or
beyond; the average is over the levels 0, 0.01 .. 1.
"""

from __future__ import annotations

import numpy as np

from tests.vitattn.detection.evaluation.small_sets import Split
from vitattn.detection.evaluation.detections import Detections


def overlap(a, b, of_first: bool) -> float:
    """Common area of two boxes x y width height over their union, or over the first one's area."""
    wide = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    whole = a[2] * a[3] if of_first else a[2] * a[3] + b[2] * b[3] - wide * high
    return wide * high / whole


def judged(split: Split, found: Detections, kind: int, threshold: float) -> tuple[list, int]:
    """[(score, right)] of what counts, in the order of image ids, and how many boxes there are."""
    marks, boxes = [], 0
    for record in sorted(range(len(split)), key=split.image_id):
        truth = split.truth(record)
        own = [n for n in range(len(truth.classes)) if truth.classes[n] == kind]
        free = [n for n in own if not truth.crowd[n]]
        boxes += len(free)
        for d in np.flatnonzero((found.records == record) & (found.classes == kind)):
            best = max(
                ((overlap(found.boxes[d], truth.boxes[n], False), n) for n in free),
                default=(0.0, -1),
            )
            if best[0] >= threshold:
                free.remove(best[1])
                marks.append((found.scores[d], True))
            elif not any(
                overlap(found.boxes[d], truth.boxes[n], True) >= threshold
                for n in own
                if truth.crowd[n]
            ):
                marks.append((found.scores[d], False))
    return marks, boxes


def average_precision(split: Split, found: Detections, kind: int, threshold: float) -> float:
    """Of one class; NaN where nothing is to be found."""
    marks, boxes = judged(split, found, kind, threshold)
    if not boxes:
        return float("nan")
    right, points = 0, []
    for number, (_, good) in enumerate(sorted(marks, key=lambda mark: -mark[0]), start=1):
        right += good
        points.append((right / boxes, right / number))
    levels = [
        max((precision for recall, precision in points if recall >= level), default=0.0)
        for level in np.linspace(0, 1, 101)
    ]
    return float(np.mean(levels))
