"""YOLO: one text file an image, a box a line, `yolo:DIR` or `yolo:DIR/data.yaml`.

A line is `class x y width height`, with the centre of the box and all in parts of the image, or
`class x y x y x y ...`, a polygon. The names of the classes stand in data.yaml or classes.txt; the
file of images/train/a.jpg is labels/train/a.txt, or a.txt beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from trainlib import paths
from trainlib.errors import ConfigError, DataError, shown
from trainlib.untrusted_files import MIB, open_regular, read_small
from vitattn.data import imagenet
from vitattn.data.source import argument_of
from vitattn.detection.annotations.report import Report
from vitattn.detection.annotations.rows import Rows
from vitattn.detection.data import layouts
from vitattn.detection.data.files import BoxedFiles, make, opened
from vitattn.detection.data.source import Kind
from vitattn.images.decode import BadImage, open_header

_MOST_BYTES = 4 * MIB  # of one file of labels
_MOST_YAML = MIB // 4
_TEXTS = ("classes.txt", "obj.names", "labels/classes.txt", "train/labels/classes.txt")
_PIXELS = 1.5  # more than rounding makes of the right edge, 1


def open_part(config: ConfigDict, part: str) -> tuple[BoxedFiles, Report] | None:
    """Opens the images of `train` or `test`, with what is wrong with them; None if there are none
    for evaluation.

    Raises:
      DataError: there is no such folder, or the names of the classes are not known.
      ConfigError: no folder was named.
    """
    root, file = _root(config)
    described = read_yaml(file)
    folders, official = folders_of(root, described, part)
    if not official and part == "test":
        return None
    return opened_folders(root, folders, described.get("names") or _names_in(root))


def _root(config: ConfigDict) -> tuple[Path, Path | None]:
    """The folder of the set, and its data.yaml."""
    given = paths.resolve(argument_of(config.source) or config.dir, "data.source (yolo:DIR)")
    if given.is_file():
        return given.parent, given
    if not given.is_dir():
        raise DataError(f"data.source: {shown(given)} is no folder.")
    return given, _yaml_in(given)


def _nothing(config: ConfigDict, split: str) -> ConfigError:
    return layouts.nothing_to_evaluate(_root(config)[0], split)


# ---------------------------------------------------------------- what belongs to it
def _yaml_in(root: Path) -> Path | None:
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (root / name).is_file():
            return root / name
    return None


def read_yaml(file: Path | None) -> dict[str, Any]:
    """Returns what a data.yaml says: `names`, a list, and the folders of parts, each a list.

    Raises:
      DataError: it is no such file.
    """
    if file is None:
        return {}
    import yaml

    data = read_small(file, _MOST_YAML, follow=True, error=DataError)
    try:
        content = yaml.safe_load(data.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = shown(" ".join(str(error).split()), 200)
        raise DataError(f"{shown(file)} is no YAML that can be read: {reason}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{shown(file)} must hold `names`, `train` and `val`.")
    described: dict[str, Any] = {}
    if "names" in content:
        described["names"] = _names(content["names"], file)
    for part in ("train", "val", "test"):
        entries = content.get(part)
        entries = entries if isinstance(entries, list) else [entries]
        described[part] = [entry for entry in entries if isinstance(entry, str) and entry]
    return described


def _names(names: Any, file: Path) -> list[str]:
    """The names of the classes in their order, of a list or of number -> name."""
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{shown(file)}: the numbers of `names` must be 0, 1, 2 and so on.")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{shown(file)}: `names` must be a list of the names of the classes.")
    return [str(name) for name in names]


def _names_in(root: Path) -> list[str]:
    for name in _TEXTS:
        if (root / name).is_file():
            data = read_small(root / name, _MOST_BYTES, follow=True, error=DataError)
            lines = data.decode("utf-8-sig", "replace").splitlines()
            return [line.strip() for line in lines if line.strip()]
    raise DataError(
        f"{shown(root)} holds neither data.yaml nor classes.txt, so the names of its classes are "
        "not known. Write them to classes.txt, one a line, in the order of their numbers."
    )


def folders_of(root: Path, described: dict[str, Any], part: str) -> tuple[list[Path], bool]:
    """Returns the folders of the images of `train` or `test`, and whether they are of a part of
    their own; of a set without parts it is all of them.

    Raises:
      DataError: there is none.
    """
    evaluation = "val" if described.get("val") else "test"
    entries = described.get("train" if part == "train" else evaluation) or []
    found = [_inside(root, entry) for entry in entries]
    if None in found:
        raise DataError(
            f"{shown(root)}: data.yaml names {shown(entries[found.index(None)], 80)!r}, and there "
            "is no such folder below the one it lies in."
        )
    if found:
        return [folder for folder in found if folder], True
    for base in (root, root / "images"):
        folder, official = layouts.part_of(base, part)
        if folder != base:
            return [folder], official
    return [root / "images" if (root / "images").is_dir() else root], False


def _inside(root: Path, entry: str) -> Path | None:
    """The folder that an entry of data.yaml means, if it lies below the one of the file itself: a
    set from elsewhere does not say which other folders are read. `../train/images`, which exports
    of Roboflow hold, means `train/images`.
    """
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".")]
    while parts and parts[0] == "..":
        parts.pop(0)
    if not parts or ".." in parts or any("\0" in part for part in parts):
        return None
    # An absolute path is of the machine where the set was made; its end may be right here.
    for skipped in range(len(parts)):
        folder = root.joinpath(*parts[skipped:])
        if folder.is_dir():
            return folder
        if not entry.startswith("/"):
            break
    return None


# ---------------------------------------------------------------- boxes
def opened_folders(
    root: Path, folders: Sequence[Path], names: Sequence[str]
) -> tuple[BoxedFiles, Report]:
    """Opens the images in some folders below `root`, with their boxes."""
    report = Report(", ".join(map(shown, folders)))
    rows = Rows(report, "line")
    for number, name in enumerate(names):
        rows.category(number + 1, name)
    lines = _Lines(rows)
    images = [image for folder in folders for image in layouts.find_images_below(folder)]
    texts = [_labels_of(image) for image in images]
    for number, (image, labels) in enumerate(zip(images, texts, strict=True), start=1):
        name = image.relative_to(root).as_posix()
        try:
            with open_regular(image, follow=True, error=DataError) as file:
                picture = open_header(file)
        except (BadImage, DataError, OSError) as error:
            report.add("unreadable", f"{name}: {error}")
            continue
        height, width = picture.height, picture.width
        rows.image(number, name, height, width)
        if labels.is_file():
            data = read_small(labels, _MOST_BYTES, follow=True, error=DataError)
            lines.add(number, name, data, height, width)
    lines.check()
    table = rows.table()
    alone = _without_image(texts)
    report.add_all("no_file", (f"that of {shown(text, 100)}" for text in alone), len(alone))
    return opened(root, table, report)


def _without_image(texts: Sequence[Path]) -> list[Path]:
    """The files of boxes that lie beside those of the images, and to which no image belongs."""
    known = set(texts)
    beside = (text for folder in sorted({t.parent for t in texts}) for text in folder.glob("*.txt"))
    return [t for t in beside if t not in known and t.name not in _TEXTS and _holds_boxes(t)]


def _holds_boxes(text: Path) -> bool:
    """Whether a file begins with a line of boxes: a list of files or a note does not."""
    if not text.is_file():
        return False
    data = read_small(text, _MOST_BYTES, follow=True, error=DataError)
    words = data.decode("utf-8-sig", "replace").split("\n", 1)[0].split()
    return _numbers(words) is not None


def _labels_of(image: Path) -> Path:
    """The file of the boxes of an image."""
    parts = list(image.parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            moved = Path(*parts).with_suffix(".txt")
            if moved.parent.is_dir():
                return moved
            break
    return image.with_suffix(".txt")


class _Lines:
    """Adds the lines of files of labels to rows, and counts what is wrong with one."""

    def __init__(self, rows: Rows):
        self._rows, self._report, self._pixels = rows, rows.report, 0

    def add(self, image: int, name: str, data: bytes, height: int, width: int) -> None:
        """Adds all lines of one file.

        Args:
          image: id of the image.
          name: of its file, for messages.
          data: the content.
          height: of the image in pixels.
          width: the same.
        """
        for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines()):
            words = line.split()
            if not words:
                continue
            self._report.annotations += 1
            numbers = _numbers(words)
            if numbers is None or not numbers[0].is_integer() or abs(numbers[0]) > 2**31:
                self._report.add("line_form", f"line {number + 1} of {name}: {shown(line, 60)}")
                continue
            label, *rest = numbers
            self._pixels += max(rest) > _PIXELS
            box = _box(rest, self._report)
            left, top, wide, high = (b * s for b, s in zip(box, (width, height) * 2, strict=True))
            sides = left, top, wide, high
            self._rows.annotation(number, image, int(label) + 1, sides, wide * high)

    def check(self) -> None:
        """Counts numbers in pixels: a few are over the edge, half of them are a mistake."""
        if self._pixels > self._report.annotations / 2:
            self._report.add("pixels", count=self._pixels)


def _numbers(words: list[str]) -> list[float] | None:
    """A line as numbers, if it has as many as a box or a polygon."""
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        return None
    try:
        return [float(word) for word in words]
    except ValueError:
        return None


def _box(numbers: list[float], report: Report) -> tuple[float, float, float, float]:
    """Left, top, width and height, in parts of the image, of a box or of a polygon."""
    if len(numbers) == 4:
        x, y, wide, high = numbers
        return x - wide / 2, y - high / 2, wide, high
    if not all(map(math.isfinite, numbers)):
        return math.nan, math.nan, math.nan, math.nan
    report.add("from_polygon")
    across, down = numbers[::2], numbers[1::2]
    left, top = min(across), min(down)
    return left, top, max(across) - left, max(down) - top


KIND = Kind(
    ("yolo:DIR", "yolo:DIR/data.yaml"),
    functools.partial(make, open_part, _nothing),
    imagenet.MEAN,
    imagenet.STD,
    lambda _: (),
)
