"""The figures of COCO, computed by pycocotools in memory, one category at a time.

What its tool would take without a word and count wrongly cannot reach it: numbers of annotations
are given here, from 1 on; boxes are finite, and ids those of the ground truth (`data.truth` and
`gather` see to it). Means over categories leave out those without a box to find.

K categories, T = 10 thresholds of overlap (0.50, 0.55 .. 0.95), R = 101 levels of recall, A = 4
ranges of area (all, small, medium, large), M limits of detections of one category on an image, n
annotations and d detections of one category.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitattn.detection.data.truth import GroundTruth
from vitattn.detection.evaluation.detections import Detections

LIMITS = (1, 10, 100)  # COCO's limits of detections
AREAS = ("all", "small", "medium", "large")
THRESHOLDS, LEVELS = 10, 101
T50, T75 = 0, 5  # where 0.5 and 0.75 stand among the thresholds


class Measured(NamedTuple):
    """What was measured of each category; NaN where it has nothing to find.

    Attributes:
      precision: f64 [K, T, A, M], mean over the levels of recall: average precision.
      recall: f64 [K, T, A, M], the highest that was reached.
      curves: f64 [K, 3, R], precision at each level of recall with COCO's limit of 100: at the
        overlaps 0.5 and 0.75, and the mean over all ten.
    """

    precision: np.ndarray
    recall: np.ndarray
    curves: np.ndarray


def limits(max_detections: int) -> tuple[int, ...]:
    """COCO's limits of detections, and that of a detector which gives more."""
    return (*LIMITS, max_detections) if max_detections > LIMITS[-1] else LIMITS


def measure(
    truth: GroundTruth,
    found: Detections,
    categories: np.ndarray,
    chosen: Sequence[int],
    most: tuple[int, ...],
    between: Callable[[], object] = lambda: None,
) -> Measured:
    """Measures some of the categories; the others stay NaN.

    Args:
      truth: of the split.
      found: detections, all finite, in the order of `Detections`.
      categories: i64 [d], the category id of each detection.
      chosen: numbers of categories, in 0..K-1.
      most: the limits of detections, see `limits`.
      between: called before each category.
    """
    of_category = len(truth.category_ids), THRESHOLDS, len(AREAS), len(most)
    precision, recall = np.full(of_category, np.nan), np.full(of_category, np.nan)
    curves = np.full((of_category[0], 3, LEVELS), np.nan)
    for number in chosen:
        between()
        category = truth.category_ids[number]
        annotations = np.flatnonzero(truth.categories == category)
        if not len(annotations):
            continue
        by_level, recall[number] = _of_category(
            _annotations(truth, annotations),
            _results(truth, found.at(categories == category)),
            most,
        )
        precision[number] = by_level.mean(1)
        standard = by_level[:, :, 0, most.index(LIMITS[-1])]  # [T, R]
        curves[number] = standard[T50], standard[T75], standard.mean(0)
    return Measured(precision, recall, curves)


def _annotations(truth: GroundTruth, chosen: np.ndarray) -> list[dict[str, Any]]:
    """What is to be found, as pycocotools takes it."""
    columns = truth.images, truth.boxes, truth.areas, truth.crowd
    rows = zip(*(column[chosen].tolist() for column in columns), strict=True)
    return [
        _entry(number, image, box, area) | {"iscrowd": int(crowd)}
        for number, (image, box, area, crowd) in enumerate(rows, start=1)
    ]


def _results(truth: GroundTruth, found: Detections) -> list[dict[str, Any]]:
    """What was found, as pycocotools takes it; its area is that of the box."""
    columns = truth.image_ids[found.records], found.boxes, found.boxes[:, 2] * found.boxes[:, 3]
    rows = zip(*(column.tolist() for column in (*columns, found.scores)), strict=True)
    return [
        _entry(number, image, box, area) | {"score": score, "iscrowd": 0}
        for number, (image, box, area, score) in enumerate(rows, start=1)
    ]


def _entry(number: int, image: int, box: list[float], area: float) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": box, "area": area}


def _of_category(
    annotations: list[dict[str, Any]], results: list[dict[str, Any]], most: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, R, A, M] and recall [T, A, M] of one category, NaN where nothing is to be
    found.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # Images with neither a box nor a detection of the category add nothing, and would be most.
    images = sorted({entry["image_id"] for entry in (*annotations, *results)})

    def indexed(entries: list[dict[str, Any]]) -> Any:
        index: Any = COCO()
        index.dataset = {
            "images": [{"id": image} for image in images],
            "categories": [{"id": 1}],
            "annotations": entries,
        }
        index.createIndex()
        return index

    with _silenced():
        evaluation = COCOeval(indexed(annotations), indexed(results), iouType="bbox")
        evaluation.params.maxDets = list(most)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0]
    recall = evaluation.eval["recall"][:, 0]
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


class _Muffled(io.TextIOBase):
    """Standard output without what one thread writes."""

    def __init__(self, stream: Any):
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread and self._stream is not None:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Inside, what this thread prints goes nowhere: pycocotools reports its progress, not more."""
    with contextlib.redirect_stdout(_Muffled(sys.stdout)):
        yield


# ---------------------------------------------------------------- the figures


def figures(measured: Measured, most: tuple[int, ...]) -> dict[str, float]:
    """The 12 figures of COCO, and AP and AR with the detector's own limit where it is higher.

    NaN where no box of that size is to be found.
    """
    precision, recall, hundred = measured.precision, measured.recall, most.index(LIMITS[-1])
    named = {
        "ap": mean(precision[:, :, 0, hundred]),
        "ap50": mean(precision[:, T50, 0, hundred]),
        "ap75": mean(precision[:, T75, 0, hundred]),
    }
    for number, area in enumerate(AREAS[1:], start=1):
        named[f"ap_{area}"] = mean(precision[:, :, number, hundred])
    for number, limit in enumerate(LIMITS):
        named[f"ar_{limit}"] = mean(recall[:, :, 0, number])
    for number, area in enumerate(AREAS[1:], start=1):
        named[f"ar_{area}"] = mean(recall[:, :, number, hundred])
    if most[-1] > LIMITS[-1]:
        named[f"ap_of_{most[-1]}"] = mean(precision[:, :, 0, -1])
        named[f"ar_{most[-1]}"] = mean(recall[:, :, 0, -1])
    return named


def of_categories(measured: Measured, most: tuple[int, ...]) -> dict[str, np.ndarray]:
    """AP of each category as `figures` has it over all, f64 [K] by the same names."""
    kinds = range(len(measured.precision))
    alone = [figures(Measured(*(part[k : k + 1] for part in measured)), most) for k in kinds]
    return {name: np.array([one[name] for one in alone]) for name in alone[0]}


def mean(values: np.ndarray) -> float:
    """Mean of what is no NaN; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
