"""Image files in a folder with the boxes of a table: what COCO, VOC and YOLO sets are once they are
read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from trainlib.errors import UserError, shown
from vitattn.data import imagenet
from vitattn.data.source import short_digest
from vitattn.detection.annotations import shape_of_boxes
from vitattn.detection.annotations.report import Report
from vitattn.detection.annotations.shape_of_boxes import Doubt
from vitattn.detection.annotations.table import Table, Truth
from vitattn.detection.data.source import BoxedExample, BoxedSource, Truths, hold_out, within
from vitattn.images import files
from vitattn.images.decode import BadImage, Picture, Pixels, open_picture
from vitattn.images.files import UnreadableRecord

_LOOKED_AT = 200  # pictures of a set that does not give their sizes


class BoxedFiles(Truths):
    """Image files with boxes.

    Args:
      folder: below which the files lie.
      table: which they are, and their boxes.
      left_out: lines on what was mended or left out.
    """

    in_memory = False
    mean = imagenet.MEAN
    std = imagenet.STD

    def __init__(self, folder: Path, table: Table, left_out: tuple[str, ...]):
        self.folder, self.table, self.left_out = folder, table, left_out
        self.class_names, self.category_ids = table.class_names, table.category_ids
        self.num_classes = len(self.class_names)
        self.digest = short_digest(
            "\n".join(table.file_names),
            files.sizes(folder, table.file_names),
            table.starts.tobytes(),
            table.boxes.tobytes(),
            table.classes.tobytes(),
            table.crowd.tobytes(),
            "\n".join(self.class_names),
        )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, record: int) -> BoxedExample:
        truth = self.table.truth(record)
        image, height, width = fitting(self.bytes_of(record), truth)
        boxes, inside = within(truth.boxes, height, width)
        return BoxedExample(image, boxes[inside], truth.classes[inside], truth.crowd[inside])

    def bytes_of(self, record: int) -> bytes:
        """Returns the content of the image file; raises `UnreadableRecord`."""
        return files.read_image(self.path(record))

    def truth(self, record: int) -> Truth:
        """Returns the exact boxes of a record."""
        return self.table.truth(record)

    def image_id(self, record: int) -> int:
        return int(self.table.image_ids[record])

    def describe(self, record: int) -> str:
        return shown(self.path(record), 1000)

    def path(self, record: int) -> Path:
        """Returns the image file of a record."""
        return self.folder / self.table.file_names[record]


# A part, "train" or "test", of the set that the section `data` names; None if it has no such part.
OpenPart = Callable[[ConfigDict, str], "tuple[BoxedFiles, Report] | None"]


def make(
    open_part: OpenPart,
    nothing: Callable[[ConfigDict, str], UserError],
    config: ConfigDict,
    split: str,
) -> BoxedSource:
    """Opens a split; without a part for evaluation, `test` is the fraction `data.holdout`.

    Args:
      open_part: opens a part of the set.
      nothing: the error of a set without this split.
      config: the `data` section of a configuration.
      split: "train", "holdout" or "test".

    Raises:
      DataError: it is absent, or cannot be used.
      ConfigError: no set was named, or no images to evaluate on.
    """
    found = open_part(config, "test") if split == "test" else None
    if found is None:
        if split != "train" and not config.holdout:
            raise nothing(config, split)
        found = open_part(config, "train")
        assert found is not None, "every set has a part to train on"
        split = "train" if split == "train" else "holdout"
    source, report = found
    report.check(config.max_bad_fraction)
    return source if split == "test" else hold_out(source, config.holdout, split)


def opened(folder: Path, table: Table, report: Report) -> tuple[BoxedFiles, Report]:
    """Opens the images of a table that are there.

    Args:
      folder: below which they lie.
      table: which they are, and their boxes.
      report: on their annotations.

    Returns:
      The images that are there, and what is wrong with the others and with their boxes; `check`
      of it says whether that can be lived with.
    """
    there = present(folder, table.file_names)
    missing = np.flatnonzero(~there).tolist()
    report.add_all("no_file", (table.file_names[number] for number in missing), len(missing))
    if missing:
        table = table.of_images(np.flatnonzero(there))
    source = BoxedFiles(folder, table, report.lines())
    if doubt := _doubt_of_some(source):
        report.add(doubt.trap, doubt.figures, len(table.boxes))
    return source, report


def fitting(image: bytes, truth: Truth) -> tuple[Pixels, int, int]:
    """Returns an image as its boxes were drawn on it, with height and width.

    A photograph with an EXIF orientation is turned upright, here and by most programs in which
    boxes are drawn. Where the annotations give width and height of the file as it is stored, boxes
    were drawn on that, and its pixels are returned as they are stored.

    Raises:
      BadImage: it cannot be decoded.
      UnreadableRecord: it has another size than its annotations say.
    """
    picture = open_picture(image)
    height, width, stored = frame(picture, truth)
    return picture.as_stored() if stored else picture.decoded or image, height, width


def frame(picture: Picture, truth: Truth) -> tuple[int, int, bool]:
    """Returns height and width of a picture as its boxes were drawn on it, and whether that is as
    it is stored and not upright; see `fitting`.
    """
    here, said = (picture.height, picture.width), (truth.height, truth.width)
    if said in (here, (0, 0)):
        return *here, False
    if picture.turned and said == here[::-1]:
        return *said, True
    raise UnreadableRecord(
        f"is {here[1]}x{here[0]} pixels, and its annotations are for {said[1]}x{said[0]}"
    )


def _doubt_of_some(source: BoxedFiles) -> Doubt | None:
    """Looks whether boxes fit their pictures where annotations do not say how large these are, in
    a few of them: boxes of another form would be found in no other way.
    """
    table = source.table
    unknown = np.flatnonzero((table.sizes[:, 0] == 0) & (np.diff(table.starts) > 0))
    boxes, sizes = [np.zeros((0, 4))], [np.zeros((0, 2), np.int32)]
    for image in unknown[:: -(-len(unknown) // _LOOKED_AT) or 1].tolist():
        with contextlib.suppress(BadImage, UnreadableRecord):  # which reading it will count
            _, height, width = fitting(source.bytes_of(image), table.truth(image))
            boxes.append(table.truth(image).boxes)
            sizes.append(np.full((len(boxes[-1]), 2), (height, width), np.int32))
    return shape_of_boxes.doubt(np.concatenate(boxes), np.concatenate(sizes))


def present(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Returns which files are in a folder, bool [N]; each folder is listed once, which a network
    disk answers sooner than a question for each file.
    """
    inside: dict[str, set[str]] = {}
    found = np.zeros(len(names), bool)
    for number, name in enumerate(names):
        parent, _, base = name.rpartition("/")
        if parent not in inside:
            inside[parent] = listed(folder / parent)
        found[number] = base in inside[parent]
    return found


def listed(folder: Path) -> set[str]:
    """Returns the names in a folder, none if it cannot be opened."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
