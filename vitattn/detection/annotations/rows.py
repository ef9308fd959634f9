"""Collects images, categories and boxes one by one, and makes the arrays of a split of them: what
refers to nothing, has no area or lies outside is counted and left out here, for every format alike.

I images, n boxes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from vitattn.detection.annotations import shape_of_boxes
from vitattn.detection.annotations.report import Report
from vitattn.detection.annotations.table import Table, starts_of

MOST_BOXES = 10_000  # of one image


class Rows:
    """What was read so far.

    Args:
      report: where mistakes are counted.
      unit: what a box is numbered as in its file.
    """

    def __init__(self, report: Report, unit: str = "annotation number"):
        self.report, self.unit = report, unit
        self.file_names: list[str] = []
        self.class_names: list[str] = []
        self._ids, self._sizes, self._categories = array("q"), array("i"), array("q")
        self._image, self._category, self._number = array("q"), array("q"), array("q")
        self._box, self._area, self._crowd = array("d"), array("d"), array("b")

    def image(self, identity: int, name: str, height: int, width: int) -> None:
        """Adds an image; its height and width are 0 where they are not known, and its name is ""
        where what stands there is none.
        """
        self._ids.append(identity)
        self._sizes.extend((height, width))
        self.file_names.append(name)

    def category(self, identity: int, name: str) -> None:
        """Adds a category."""
        self._categories.append(identity)
        self.class_names.append(name)

    def annotation(
        self,
        number: int,
        image: int,
        category: int,
        box: Sequence[float],
        area: float = float("nan"),
        crowd: bool = False,
    ) -> None:
        """Adds a box.

        Args:
          number: its position in the file, for messages.
          image: id of its image.
          category: id of its category.
          box: x, y, width, height.
          area: of the object; NaN where it is not known.
          crowd: whether it holds many objects.
        """
        self._box.extend(array("d", box))  # all four or, where one is no float, none
        self._number.append(number)
        self._image.append(image)
        self._category.append(category)
        self._area.append(area)
        self._crowd.append(crowd)

    def table(self) -> Table:
        """Returns what was read as arrays, and counts what does not fit together."""
        ids, categories = np.asarray(self._ids, np.int64), np.asarray(self._categories, np.int64)
        sizes = np.asarray(self._sizes, np.int32).reshape(-1, 2)
        self._check_entries(ids, categories)
        order = np.argsort(categories, kind="stable")
        images = _positions(np.asarray(self._image, np.int64), ids)
        classes = _positions(np.asarray(self._category, np.int64), categories[order])
        boxes = np.asarray(self._box, np.float64).reshape(-1, 4)
        kept = self._usable(images, classes, boxes, sizes)
        kept = kept[np.argsort(images[kept], kind="stable")]
        counts = np.bincount(images[kept], minlength=len(ids))
        self._check_counts(counts, np.bincount(classes[kept], minlength=len(order)), order)
        boxes, classes = boxes[kept], classes[kept]
        self.report.add_all("box_twice", (), _repeated(images[kept], classes, boxes))
        area = np.asarray(self._area, np.float64)[kept]
        usable = np.isfinite(area) & (area > 0)
        self.report.add_all("no_area", (), int(np.count_nonzero(~usable)))
        crowd = np.asarray(self._crowd, bool)[kept]
        trap = "only_crowds" if crowd.all() else "crowd"
        self.report.add_all(trap, (), int(np.count_nonzero(crowd)))
        return Table(
            image_ids=ids,
            file_names=tuple(self.file_names),
            sizes=sizes,
            starts=starts_of(counts),
            boxes=boxes,
            classes=classes.astype(np.int32),
            area=np.where(usable, area, boxes[:, 2] * boxes[:, 3]),
            crowd=crowd,
            category_ids=tuple(categories[order].tolist()),
            class_names=tuple(self.class_names[number] for number in order.tolist()),
        )

    def _check_entries(self, ids: np.ndarray, categories: np.ndarray) -> None:
        """Counts ids and names that stand twice, and what is missing altogether."""
        report = self.report
        report.images, report.categories = len(ids), len(categories)
        for trap, values in (
            ("image_twice", ids),
            ("file_twice", np.asarray(self.file_names, object)),
            ("category_twice", categories),
            ("name_twice", np.asarray(self.class_names, object)),
        ):
            report.add_all(trap, *_twice(values.tolist()))
        if not len(ids):
            report.add("no_images")
        if not len(categories):
            report.add("no_categories")

    def _usable(
        self, images: np.ndarray, classes: np.ndarray, boxes: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Returns the numbers of the boxes that can be used, i64 [n']."""
        left = np.arange(len(boxes))

        def leave_out(trap: str, wrong: ArrayLike) -> None:
            nonlocal left
            found = left[np.asarray(wrong)]
            self.report.add_all(trap, map(self._named, found.tolist()), len(found))
            left = np.setdiff1d(left, found, assume_unique=True)

        leave_out("unknown_image", images < 0)
        leave_out("unknown_category", classes[left] < 0)
        leave_out("box_nan", ~np.isfinite(boxes[left]).all(-1))
        leave_out("box_negative", np.any(boxes[left, 2:] < 0, axis=-1))
        shape = shape_of_boxes.doubt(boxes[left], sizes[images[left]])
        if shape:
            self.report.add_all(shape.trap, (shape.figures,), len(left))
            return left
        leave_out("box_empty", np.any(boxes[left, 2:] == 0, axis=-1))
        seen, over = _in_image(boxes[left], sizes[images[left]])
        self.report.add_all("box_over", map(self._named, left[over].tolist()), int(over.sum()))
        leave_out("box_outside", ~seen)
        return left

    def _named(self, row: int) -> str:
        box = ", ".join(f"{side:g}" for side in self._box[4 * row : 4 * row + 4])
        return f"{self.unit} {self._number[row] + 1} of {self._file_of(self._image[row])}: [{box}]"

    def _file_of(self, identity: int) -> str:
        """The name of the image of an id; only looked up for the few examples of a message."""
        if identity in self._ids:
            return self.file_names[self._ids.index(identity)]
        return f"image {identity}"

    def _check_counts(self, boxes: np.ndarray, classes: np.ndarray, order: np.ndarray) -> None:
        """Counts images and categories of too few or too many boxes, [I] and [C]."""
        for trap, found in (("no_box", boxes == 0), ("crowded", boxes > MOST_BOXES)):
            numbers = np.flatnonzero(found).tolist()
            self.report.add_all(trap, (self.file_names[n] for n in numbers), len(numbers))
        unused = order[classes == 0].tolist()
        self.report.add_all("unused", (self.class_names[n] for n in unused), len(unused))
        if not boxes.sum():
            self.report.add("no_annotations")


def _in_image(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether boxes lie in their images at all, and whether they reach over the edge too,
    bool [n] each; where a size is not known, only the top and left edges are.
    """
    known = np.all(sizes > 0, axis=-1)[:, None]
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    limit = np.where(known, sizes[:, ::-1], np.inf)  # width, height
    seen = np.all((low < limit) & (high > 0), axis=-1)
    return seen, seen & np.any((low < 0) | (high > limit), axis=-1)


def _positions(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Returns where each value stands in `among`, i64; -1 where it does not."""
    if not len(among):
        return np.full(len(values), -1)
    order = np.argsort(among, kind="stable")
    at = np.minimum(np.searchsorted(among[order], values), len(among) - 1)
    return np.where(among[order][at] == values, order[at], -1)


def _repeated(images: np.ndarray, classes: np.ndarray, boxes: np.ndarray) -> int:
    """Returns how many boxes stand a second time in their image, with the same class.

    Of each box, six numbers are mixed into one, modulo 2**64: sorting rows takes ten times as long.
    """
    parts = [images, classes, *np.ascontiguousarray(boxes.T).view(np.int64)]
    mixed = np.zeros(len(images), np.uint64)
    for part in parts:
        mixed = (mixed ^ part.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return len(mixed) - len(np.unique(mixed))


def _twice(values: Sequence[object]) -> tuple[list[str], int]:
    """Returns the values that stand more than once, as text, and how many they are."""
    seen: set[object] = set()
    found = dict.fromkeys(v for v in values if v != "" and (v in seen or seen.add(v)))
    return [str(value) for value in found], len(found)
