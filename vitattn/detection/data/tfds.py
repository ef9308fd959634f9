"""COCO as TensorFlow Datasets (TFDS) prepares it, `coco/2017`, read at random without TensorFlow.

There boxes are fractions of the image (top, left, bottom, right), and classes are numbered 0..79.
n boxes of an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from trainlib import commands
from trainlib.errors import DataError, shown
from vitattn.data import imagenet
from vitattn.data import tfds as prepared
from vitattn.detection.annotations.official import NAMES
from vitattn.detection.annotations.table import Truth
from vitattn.detection.data.source import BoxedExample, BoxedSource, Kind, Truths, hold_out, within
from vitattn.images.decode import BadImage, Rgb, open_picture
from vitattn.images.files import UnreadableRecord

_IDS = {name: identity for identity, name in NAMES.items()}


class TfdsBoxes(prepared.Prepared, Truths):
    """One split of a prepared TFDS data set of images with boxes."""

    def __init__(self, directory: str, split: str, mean: Rgb, std: Rgb):
        """Reads the description of the data set; raises DataError if it has no boxes."""
        super().__init__(directory, split, mean, std)
        self.left_out = (
            f"{shown(directory)}: boxes without an area are left out, which only reading finds; "
            f"`{commands.name('prepare')} --check` counts them",
        )
        known = all(name in _IDS for name in self.class_names)
        numbers = range(1, self.num_classes + 1)
        self.category_ids = (
            tuple(_IDS[name] for name in self.class_names) if known else tuple(numbers)
        )

    def _classes(self, features: Any) -> tuple[str, ...]:
        import tensorflow_datasets as tfds

        def parts(feature: Any) -> dict[str, Any]:
            is_dict = isinstance(feature, tfds.features.FeaturesDict)
            return dict(feature.items()) if is_dict else {}

        has = parts(features)
        inner = parts(getattr(has.get("objects"), "feature", None))
        if not (
            isinstance(has.get("image"), tfds.features.Image)
            and isinstance(inner.get("bbox"), tfds.features.BBoxFeature)
            and prepared.is_class(inner.get("label"))
        ):
            names = ", ".join(shown(name, 40) for name in [*has, *inner][:12]) or "not named"
            raise DataError(
                f"{shown(self.directory)} is no data set of images with boxes: its features are "
                f"{names}, and 'image' must be an Image, 'objects' a sequence with 'bbox' and "
                "'label'."
            )
        return tuple(inner["label"].names)

    def __getitem__(self, record: int) -> BoxedExample:
        features = self.features_of(record)
        truth = self._truth(record, features)
        boxes, inside = within(truth.boxes, truth.height, truth.width)
        crowd = truth.crowd[inside]
        return BoxedExample(features["image"], boxes[inside], truth.classes[inside], crowd)

    def truth(self, record: int) -> Truth:
        """Returns the exact boxes of a record. It reads the header of its image, whose size is
        stored nowhere else; of a record that cannot be read there are none.
        """
        try:
            return self._truth(record, self.features_of(record))
        except (UnreadableRecord, BadImage):
            none = np.zeros(0)
            return Truth(
                record + 1, "", 0, 0, np.zeros((0, 4)), none.astype(np.int32), none, none > 0
            )

    def without_area(self, record: int) -> int:
        """Returns how many boxes of a record have no area, and are left out."""
        stored = len(self.features_of(record)["objects"]["bbox"])
        return stored - len(self.truth(record).boxes)

    def _truth(self, record: int, features: dict[str, Any]) -> Truth:
        picture = open_picture(features["image"])
        objects = features["objects"]
        edges = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
        edges *= [picture.height, picture.width] * 2
        boxes = np.concatenate([edges[:, 1::-1], (edges[:, 2:] - edges[:, :2])[:, ::-1]], -1)
        labels = np.asarray(objects["label"], np.int64)
        if len(labels) != len(boxes) or not np.all((labels >= 0) & (labels < self.num_classes)):
            raise UnreadableRecord(f"has a box whose class is none of the {self.num_classes}")
        usable = np.isfinite(boxes).all(-1) & np.all(boxes[:, 2:] > 0, axis=-1)
        return Truth(
            int(features.get("image/id", record + 1)),
            _text(features.get("image/filename", b"")),
            picture.height,
            picture.width,
            boxes[usable],
            labels[usable].astype(np.int32),
            _area(objects, boxes)[usable],
            np.asarray(objects.get("is_crowd", np.zeros(len(boxes))), bool)[usable],
        )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _area(objects: dict[str, Any], boxes: np.ndarray) -> np.ndarray:
    """The area of each object, f64 [n]: that which is stored, else that of its box."""
    return np.asarray(objects.get("area", boxes[:, 2] * boxes[:, 3]), np.float64)


def make(config: ConfigDict, split: str) -> BoxedSource:
    """Opens a split of `coco/2017`; `test` is its validation set.

    Raises:
      DataError: it is not there, or is damaged.
    """
    directory = prepared.find("coco/2017", config.dir)
    if directory is None:
        where = config.dir or prepared.default_directory()
        raise DataError(
            f"COCO was not found in {shown(where)} as TFDS prepares it. Either prepare it (one "
            "step that needs TensorFlow; training does not): tfds build coco/2017 "
            f"--file_format=array_record --data_dir={shown(where)}; or read the official files: "
            "--config.data.source=coco --config.data.dir=DIR."
        )
    part = "validation" if split == "test" else "train"
    source = TfdsBoxes(directory, part, imagenet.MEAN, imagenet.STD)
    return source if split == "test" else hold_out(source, config.holdout, split)


KIND = Kind(("coco/2017",), make, imagenet.MEAN, imagenet.STD, lambda _: tuple(NAMES.values()))
