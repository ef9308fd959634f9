"""What every data set of images with boxes offers: examples with random access, and the exact boxes
for an evaluation.

n boxes of an image, C classes. Inside the framework boxes are f32 [n, 4], top, left, bottom, right
in pixels; outside, in JSON, they are COCO's [x, y, width, height].
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from vitattn.data import source as sources
from vitattn.data.source import DataSet
from vitattn.detection.annotations.table import Truth
from vitattn.images.decode import Pixels
from vitattn.labels.class_names import Names
from vitattn.labels.matching import Renumbered


class BoxedExample(NamedTuple):
    """One record.

    Attributes:
      image: uint8 pixels [H, W, C], an encoded file or an open picture.
      boxes: f32 [n, 4], top, left, bottom, right in pixels of the upright image as it is decoded,
        inside it, each with an area.
      classes: i32 [n], 0..C-1.
      crowd: bool [n], whether the box holds many objects that nobody counted.
    """

    image: Pixels
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray


class BoxedSource(DataSet, Protocol):
    """A data set of images with boxes, with random access.

    Attributes:
      category_ids: COCO's id of each class, [C]; -1 for a class of a model that this set lacks.
    """

    category_ids: tuple[int, ...]

    def __getitem__(self, record: int) -> BoxedExample: ...

    def truth(self, record: int) -> Truth:
        """Returns the exact boxes of a record, in general without reading its image."""
        ...

    def image_id(self, record: int) -> int:
        """Returns COCO's id of the image of a record."""
        ...

    def ground_truth(self) -> dict[str, Any]:
        """Returns all records as a COCO object, as pycocotools takes it."""
        ...


Kind = sources.Kind[BoxedSource]


class Truths:
    """The part of a `BoxedSource` that follows from its `truth`."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        raise NotImplementedError

    def truth(self, record: int) -> Truth:
        raise NotImplementedError

    def image_id(self, record: int) -> int:
        """Returns COCO's id of the image of a record."""
        return self.truth(record).image_id

    def ground_truth(self) -> dict[str, Any]:
        """Returns all records as a COCO object: images, annotations with ids from 1 on, categories.

        Everything in it is a plain number or text, so that it can be written as JSON.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record in range(len(self)):
            truth = self.truth(record)
            images.append(_image(truth))
            rows = zip(
                truth.boxes.tolist(),
                truth.classes.tolist(),
                truth.area.tolist(),
                truth.crowd.tolist(),
                strict=True,
            )
            for box, number, area, crowd in rows:
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # pycocotools takes the id 0 for "unmatched"
                        "image_id": truth.image_id,
                        "category_id": self.category_ids[number],
                        "bbox": box,
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
        named = zip(self.category_ids, self.class_names, strict=True)
        categories = [{"id": number, "name": name} for number, name in named if number >= 0]
        return {"images": images, "annotations": annotations, "categories": categories}


def _image(truth: Truth) -> dict[str, Any]:
    known = {"height": truth.height, "width": truth.width} if truth.height and truth.width else {}
    return {"id": truth.image_id, "file_name": truth.file_name, **known}


class Subset(sources.Subset[BoxedSource], Truths):
    """The chosen records of another source, in ascending order."""

    def __init__(self, parent: BoxedSource, records: np.ndarray, name: str):
        super().__init__(parent, records, name)
        self.category_ids = parent.category_ids

    def truth(self, record: int) -> Truth:
        return self.parent.truth(int(self.records[record]))


def hold_out(train: BoxedSource, fraction: float, split: str) -> BoxedSource:
    """Divides a training set; see `vitattn.data.source.hold_out`."""
    return sources.hold_out(train, fraction, split, Subset)


class Relabelled(Renumbered[BoxedSource], Truths):
    """Images with boxes with the numbers of a model's outputs."""

    def __init__(self, parent: BoxedSource, names: Names, labels: np.ndarray):
        super().__init__(parent, names, labels)
        ids = dict(zip(labels.tolist(), parent.category_ids, strict=True))
        self.category_ids = tuple(ids.get(number, -1) for number in range(len(names)))

    def __getitem__(self, record: int) -> BoxedExample:
        example = self.parent[record]
        return example._replace(classes=self.labels[example.classes].astype(np.int32))

    def truth(self, record: int) -> Truth:
        truth = self.parent.truth(record)
        return truth._replace(classes=self.labels[truth.classes].astype(np.int32))


def relabelled(source: BoxedSource, names: Names, labels: np.ndarray) -> BoxedSource:
    """Returns the records of a source with the classes of a model, as `matching.by_name` asks."""
    return Relabelled(source, names, labels)


def within(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips COCO's boxes to their image.

    Args:
      boxes: f64 [n, 4], x, y, width, height.
      height: of the image in pixels.
      width: the same.

    Returns:
      f32 [n, 4], top, left, bottom, right inside the image; and bool [n], whether anything is left
      of a box there.
    """
    left, top, wide, high = np.moveaxis(boxes, -1, 0)
    edges = np.stack([top, left, top + high, left + wide], -1)
    clipped = np.clip(edges, 0, [height, width] * 2).astype(np.float32)
    return clipped, (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
