"""The mistakes that annotations have in practice: each counted, named with examples, and refused,
left out or mended.

`TRAPS` is the list of them all. Nothing is mended or left out without a line that says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from trainlib.errors import DataError, shown

_EXAMPLES = 3

# What is done about a mistake.
REFUSED = "refused"
BROKEN = "broken"  # left out, up to data.max_bad_fraction of the annotations; more is refused
MISSING = "missing"  # the same of images
LEFT_OUT = "left out"
MENDED = "mended"
NOTED = "kept"


class Trap(NamedTuple):
    """One kind of mistake.

    Attributes:
      what: that is wrong, as the beginning of a line.
      unit: of the count.
      verdict: what is done.
      how: the same in words, or what a person can do where it is refused.
    """

    what: str
    unit: str
    verdict: str
    how: str


def _broken(what: str) -> Trap:
    return Trap(what, "annotation", BROKEN, "left out")


TRAPS: dict[str, Trap] = {
    # ---------------------------------------------------------------- the file as a whole
    "no_images": Trap(
        "no images", "file", REFUSED, "it needs 'images', 'annotations', 'categories'"
    ),
    "no_annotations": Trap(
        "no annotations", "file", REFUSED, "there is nothing to learn or to find in it"
    ),
    "only_crowds": Trap(
        "only crowds or difficult objects",
        "annotation",
        REFUSED,
        "they are not learnt and not looked for: mark single objects with iscrowd 0",
    ),
    "no_categories": Trap("no categories", "file", REFUSED, "they name the classes"),
    "captions": Trap("captions instead of boxes", "annotation", REFUSED, "give the instances file"),
    "panoptic": Trap("panoptic segments", "annotation", REFUSED, "give the instances file"),
    # ---------------------------------------------------------------- images
    "image_form": Trap(
        "images that are no object with a whole number as 'id'", "image", REFUSED, "number them"
    ),
    "file_name": Trap(
        "images without a 'file_name' of a file below the image folder",
        "image",
        REFUSED,
        "give names relative to the image folder, without '..'",
    ),
    "image_twice": Trap(
        "an image id that several images have", "image", REFUSED, "give each an id of its own"
    ),
    "file_twice": Trap(
        "a file that several images name", "image", REFUSED, "give each file one entry"
    ),
    "image_size": Trap(
        "no usable width and height", "image", MENDED, "those of the pictures are taken"
    ),
    "image_float": Trap("ids written as 17.0", "image", MENDED, "read as whole numbers"),
    "backslash": Trap(
        "file names with a backslash", "image", MENDED, "read as folders, as Windows means them"
    ),
    "no_box": Trap("images without a box", "image", NOTED, "kept: they show what is no object"),
    "crowded": Trap(
        "images of more than 10,000 boxes", "image", REFUSED, "no detector gives so many"
    ),
    "turned": Trap(
        "pictures that their EXIF orientation turns",
        "image",
        NOTED,
        "read upright, or as stored where width and height of the annotations are those",
    ),
    # ---------------------------------------------------------------- categories
    "category_form": Trap(
        "categories that are no object with a whole number from 0 on as 'id' and a text as 'name'",
        "category",
        REFUSED,
        "write them as {'id': 1, 'name': 'cat'}",
    ),
    "category_twice": Trap(
        "a category id that several categories have", "category", REFUSED, "number them anew"
    ),
    "name_twice": Trap(
        "a name that several categories have",
        "category",
        REFUSED,
        "classes are matched by their names: give each a name of its own",
    ),
    "no_name": Trap("categories without a name", "category", REFUSED, "name them"),
    "unused": Trap("categories without a box", "category", NOTED, "kept: nothing teaches them"),
    # ---------------------------------------------------------------- annotations
    "annotation_form": _broken("annotations that are no object"),
    "reference_form": _broken("an image_id or category_id that is no whole number"),
    "unknown_image": _broken("an image_id that no image has"),
    "unknown_category": _broken("a category_id that no category has"),
    "no_geometry": _broken("neither a box nor a polygon nor a mask"),
    "box_form": _broken("a box that is not four numbers"),
    "line_form": _broken("a line that is not a class and the four numbers of a box"),
    "box_text": _broken("text in place of a number in the box"),
    "box_truth": _broken("true or false in place of a number in the box"),
    "box_nan": _broken("NaN or infinity in the box"),
    "box_negative": _broken("a negative width or height"),
    "polygon_form": _broken("no box, and a polygon or mask that cannot be read"),
    "box_empty": Trap("a width or height of 0", "annotation", LEFT_OUT, "left out"),
    "box_outside": Trap("boxes wholly outside their image", "annotation", LEFT_OUT, "left out"),
    "box_over": Trap(
        "boxes that reach over the edge of their image",
        "annotation",
        MENDED,
        "clipped in training; evaluation has them as they are",
    ),
    "box_twice": Trap("the same box and class twice in an image", "annotation", NOTED, "kept"),
    "from_polygon": Trap(
        "polygons without a box", "annotation", MENDED, "the box around the polygon is taken"
    ),
    "from_mask": Trap(
        "masks without a box", "annotation", MENDED, "the box around the mask is taken"
    ),
    "no_id": Trap("annotations without an id", "annotation", MENDED, "numbered from 1"),
    "id_zero": Trap(
        "the annotation id 0, which pycocotools takes for 'unmatched'",
        "annotation",
        MENDED,
        "numbered from 1",
    ),
    "id_twice": Trap(
        "an annotation id that several annotations have", "annotation", MENDED, "numbered from 1"
    ),
    "id_form": Trap(
        "an annotation id that is no whole number", "annotation", MENDED, "numbered from 1"
    ),
    "no_area": Trap("no usable area", "annotation", MENDED, "that of the box is taken"),
    "no_crowd": Trap("no usable iscrowd", "annotation", MENDED, "read as 0"),
    "reference_float": Trap("ids written as 17.0", "annotation", MENDED, "read as whole numbers"),
    "crowd": Trap(
        "crowds", "annotation", NOTED, "not learnt; in evaluation they neither count nor harm"
    ),
    # ---------------------------------------------------------------- all boxes together
    "corners": Trap(
        "boxes that look like [x0, y0, x1, y1]",
        "annotation",
        REFUSED,
        "COCO's are [x, y, width, height]: subtract the first two numbers from the last two",
    ),
    "swapped": Trap(
        "boxes that look like [y, x, height, width]",
        "annotation",
        REFUSED,
        "COCO's are [x, y, width, height]: exchange the numbers",
    ),
    "centres": Trap(
        "boxes that look like [centre x, centre y, width, height]",
        "annotation",
        REFUSED,
        "COCO's begin with the left and the top edge: subtract half of width and height",
    ),
    "fractions": Trap(
        "boxes that look like fractions of the image",
        "annotation",
        REFUSED,
        "COCO's are in pixels: multiply by width and height",
    ),
    "misfit": Trap(
        "boxes that do not fit their images",
        "annotation",
        REFUSED,
        "are they of pictures of another size?",
    ),
    "pixels": Trap(
        "numbers that look like pixels",
        "annotation",
        REFUSED,
        "those of YOLO are parts of the width and height: divide by them",
    ),
    # ---------------------------------------------------------------- the folder
    "unreadable": Trap("images or XML files that cannot be read", "image", MISSING, "left out"),
    "other_size": Trap(
        "pictures of another size than their annotations say", "image", MISSING, "left out"
    ),
    "no_file": Trap("images whose file is not there", "image", MISSING, "left out"),
}


class Report:
    """What was found in one file of annotations.

    Args:
      what: the file, for messages.
    """

    def __init__(self, what: str):
        self.what = what
        self.images = self.annotations = self.categories = 0
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}
        self.notes: list[str] = []

    def copy(self) -> Report:
        """Returns one that can be added to."""
        other = Report(self.what)
        other.images, other.annotations = self.images, self.annotations
        other.categories, other.notes = self.categories, [*self.notes]
        other.counts = dict(self.counts)
        other.examples = {trap: [*found] for trap, found in self.examples.items()}
        return other

    def add(self, trap: str, example: str = "", count: int = 1) -> None:
        """Counts a mistake; the first few examples are kept."""
        self.counts[trap] = self.counts.get(trap, 0) + count
        examples = self.examples.setdefault(trap, [])
        if example and len(examples) < _EXAMPLES:
            examples.append(shown(example, 120))

    def add_all(self, trap: str, examples: Iterable[str], count: int) -> None:
        """Counts some at once, if there are any; only the first few examples are looked at."""
        if not count:
            return
        self.add(trap, count=count)
        for example, _ in zip(examples, range(_EXAMPLES), strict=False):
            self.add(trap, example, 0)

    def line(self, trap: str, how: str = "") -> str:
        """One line: what, how many, what is done, examples."""
        what, unit, _, usual = TRAPS[trap]
        count = self.counts[trap]
        said = what.startswith(_plural(unit, 2))
        number = "" if unit == "file" else f": {count:,}" + f" {_plural(unit, count)}" * (not said)
        examples = self.examples[trap]
        such = f" (such as {'; '.join(examples)})" if examples else ""
        return f"{what}{number}, {how or usual}{such}"

    def reason(self, trap: str) -> str:
        """The same of what makes the file unusable."""
        limited = TRAPS[trap].verdict in (BROKEN, MISSING)
        return self.line(trap, "more than data.max_bad_fraction lets be left out" * limited)

    def each(self, leave_out: Collection[str] = ()) -> list[str]:
        """The mistakes that were met, a line each."""
        return [self.line(trap) for trap in TRAPS if trap in self.counts and trap not in leave_out]

    def lines(self) -> tuple[str, ...]:
        """What is mended, left out or worth knowing, a line each, with where that was."""
        return tuple(f"{self.what}: {line}" for line in (*self.notes, *self.each()))

    def refused(self, max_bad_fraction: float) -> list[str]:
        """The mistakes with which the file is not used."""
        return [
            trap for trap in TRAPS if trap in self.counts and self._stops(trap, max_bad_fraction)
        ]

    def _stops(self, trap: str, fraction: float) -> bool:
        verdict = TRAPS[trap].verdict
        if verdict == BROKEN:
            return self.broken() > fraction * self.annotations
        if verdict == MISSING:
            return self.counts[trap] > fraction * self.images or self.counts[trap] >= self.images
        return verdict == REFUSED

    def broken(self) -> int:
        """The number of annotations that are left out since they cannot be understood."""
        return sum(n for trap, n in self.counts.items() if TRAPS[trap].verdict == BROKEN)

    def check(self, max_bad_fraction: float) -> None:
        """Raises DataError if the file cannot be used as it is; the message names all reasons."""
        refused = self.refused(max_bad_fraction)
        if not refused:
            return
        reasons = "; ".join(map(self.reason, refused))
        hint = ""
        if any(TRAPS[trap].verdict in (BROKEN, MISSING) for trap in refused):
            hint = (
                f" data.max_bad_fraction is {max_bad_fraction:g}: mend them, or raise "
                "--config.data.max_bad_fraction to go on without them."
            )
        raise DataError(f"{self.what} cannot be used: {reasons}.{hint}")


def _plural(unit: str, count: int) -> str:
    if count == 1:
        return unit
    return "categories" if unit == "category" else f"{unit}s"
