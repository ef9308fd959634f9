"""Small splits of boxes, and detections on them, drawn at random with all that pycocotools treats
in its own way: crowds, equal scores, areas that are not those of the boxes, classes without a box,
images without any, and far more detections than COCO counts.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np

from vitattn.detection.data.truth import read_truth
from vitattn.detection.evaluation.detections import Detections
from vitattn.detection.evaluation.evaluation import measure
from vitattn.detection.evaluation.gather import Gathered
from vitattn.detection.evaluation.result import Evaluation


@dataclasses.dataclass
class Split:
    """A split without pictures, as far as evaluation asks: a `Truthful`."""

    truths: list[Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.truths)

    def describe(self, record: int) -> str:
        return f"image {record}.png"

    def image_id(self, record: int) -> int:
        return self.truths[record].image_id

    def truth(self, record: int) -> Any:
        return self.truths[record]

    def json(self) -> dict[str, Any]:
        """As an annotation file has it."""
        columns = ("boxes", "classes", "area", "crowd")
        rows = [
            (truth.image_id, *(column.tolist() for column in row))
            for truth in self.truths
            for row in zip(*(getattr(truth, name) for name in columns), strict=True)
        ]
        return {
            "images": [{"id": truth.image_id} for truth in self.truths],
            "categories": [
                {"id": number, "name": name}
                for number, name in zip(self.category_ids, self.class_names, strict=True)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": image,
                    "category_id": self.category_ids[kind],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
                for number, (image, box, kind, area, crowd) in enumerate(rows, start=1)
            ],
        }


def truth(image_id: int, boxes: Any, classes: Any, crowd: Any = None, area: Any = None) -> Any:
    """The ground truth of one image; boxes are x y width height."""
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return SimpleNamespace(
        image_id=image_id,
        boxes=boxes,
        classes=np.array(classes, np.int32),
        area=boxes[:, 2] * boxes[:, 3] if area is None else np.array(area, np.float64),
        crowd=np.zeros(len(boxes), bool) if crowd is None else np.array(crowd, bool),
    )


def random_split(rng: np.random.Generator, images: int = 12, classes: int = 4) -> Split:
    """A split whose ids have gaps and are in no order; the last class may have no box."""
    ids = rng.choice(1000, images, replace=False)
    truths = []
    for image_id in ids.tolist():
        count = int(rng.integers(0, 7))
        boxes = np.concatenate([rng.uniform(0, 200, (count, 2)), _sides(rng, count)], axis=1)
        area = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1.0, count)
        kinds = rng.integers(0, max(1, classes - 1), count)
        truths.append(truth(image_id, boxes, kinds, rng.random(count) < 0.15, area))
    category_ids = tuple(int(n) for n in rng.permutation(20)[:classes])
    return Split(truths, tuple(f"kind {n}" for n in range(classes)), category_ids)


def _sides(rng: np.random.Generator, count: int) -> np.ndarray:
    """Of boxes of all three sizes of COCO, some of them exactly between two."""
    sides = np.exp(rng.uniform(np.log(4), np.log(250), (count, 2)))
    limits = rng.choice([32.0, 96.0], (count, 1)) * np.ones((1, 2))
    return np.where(rng.random((count, 1)) < 0.1, limits, sides)


def random_detections(rng: np.random.Generator, split: Split, most: int = 20) -> Detections:
    """Boxes near the true ones and elsewhere, with rounded scores, so that many are equal."""
    records, boxes, scores, classes = [], [], [], []
    for record in range(len(split)):
        true, count = split.truth(record), int(rng.integers(0, most + 1))
        near = rng.integers(0, max(1, len(true.classes)), count)
        drawn = np.concatenate([rng.uniform(0, 200, (count, 2)), _sides(rng, count)], axis=1)
        kinds = rng.integers(0, len(split.class_names), count)
        if len(true.classes):
            close = rng.random(count) < 0.7
            shift = np.where(rng.random(count) < 0.2, 0.0, rng.normal(0, 0.08, count))[:, None]
            drawn[close] = (true.boxes[near] * (1 + shift))[close]
            kinds[close] = true.classes[near][close]
        order = np.argsort(-(score := np.round(rng.random(count), 1)), kind="stable")
        records += [record] * count
        boxes.append(drawn[order])
        scores.append(score[order])
        classes.append(kinds[order])
    return Detections(
        np.array(records, np.int64),
        np.concatenate(boxes).reshape(-1, 4),
        np.concatenate(scores),
        np.concatenate(classes).astype(np.int64),
    )


def evaluated(split: Split, found: Detections, limit: int = 100) -> Evaluation:
    """The evaluation of detections, as `over_split` makes it when it has gathered them."""
    nothing = np.zeros(0, np.int64)
    return measure(Gathered(found, nothing, nothing), read_truth(split), split, limit)


def directly(annotations: str, results: str, most: tuple[int, int, int] = (1, 10, 100)) -> Any:
    """pycocotools as anybody would call it on two files: its `COCOeval`, summarised."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(annotations)
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.params.maxDets = list(most)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation
