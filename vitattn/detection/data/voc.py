"""Pascal VOC: one XML file an image, `voc:DIR`.

Read are the official folder (Annotations, JPEGImages, ImageSets/Main/*.txt), and folders with XML
files and images, DIR/train and DIR/val among them. Classes are the names in the files in
alphabetical order; image and category ids count from 1.
"""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from trainlib import paths
from trainlib.errors import ConfigError, DataError, shown
from trainlib.untrusted_files import MIB, read_small
from vitattn.data import imagenet
from vitattn.data.source import argument_of
from vitattn.detection.annotations.report import Report
from vitattn.detection.annotations.rows import Rows
from vitattn.detection.data import layouts
from vitattn.detection.data.files import BoxedFiles, make, opened
from vitattn.detection.data.source import Kind

_MOST_BYTES = 8 * MIB  # of one file; 10,000 boxes take 3 MiB
_SETS = "ImageSets/Main"
_PAIRS = (("train", "val"), ("trainval", "test"), ("train", "test"))  # of official lists
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class Object(NamedTuple):
    """One object: name of its class, left, top, right and bottom as they stand there, and whether
    it is marked as difficult."""

    name: str
    sides: tuple[float, ...]
    difficult: bool


class Page(NamedTuple):
    """One XML file: the file of its image, height and width (0 where it does not say), objects."""

    image: str
    size: tuple[int, int]
    objects: list[Object]


class BadPage(Exception):
    """A file that is not what it should be; the message says why."""


def open_part(config: ConfigDict, part: str) -> tuple[BoxedFiles, Report] | None:
    """Opens the images of `train` or `test`, with what is wrong with them; None if there are none
    for evaluation.

    Raises:
      DataError: there is no XML file, or no folder.
      ConfigError: no folder was named.
    """
    root = _root(config)
    files, official = files_of(root, part)
    return opened_files(root, files) if official or part == "train" else None


def _root(config: ConfigDict) -> Path:
    return paths.resolve(argument_of(config.source) or config.dir, "data.source (voc:DIR)")


def _nothing(config: ConfigDict, split: str) -> ConfigError:
    return layouts.nothing_to_evaluate(_root(config), split)


def files_of(root: Path, part: str) -> tuple[list[Path], bool]:
    """Returns the XML files of `train` or `test`, and whether they are of a part of their own; of a
    set without parts they are all files.

    Raises:
      DataError: there is none.
    """
    if not root.is_dir():
        raise DataError(f"data.source: {shown(root)} is no folder.")
    for pair in _PAIRS:
        lists = [root / _SETS / f"{name}.txt" for name in pair]
        if all(file.is_file() for file in lists):
            names = _listed(lists[part == "test"])
            return [root / "Annotations" / f"{name}.xml" for name in names], True
    folder, official = layouts.part_of(root, part)
    files = layouts.find_files(folder, ".xml")
    if not files:
        raise DataError(
            f"{shown(folder)} holds no XML file. Expected: {shown(root)}/Annotations/*.xml with "
            "JPEGImages/ and ImageSets/Main/train.txt and val.txt, or XML files beside images."
        )
    return files, official


def _listed(file: Path) -> list[str]:
    """The names in a list, of which a line may hold more after a blank."""
    text = read_small(file, follow=True, error=DataError).decode("utf-8", "replace")
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    if wrong := [name for name in names if "/" in name or name.startswith(".") or "\0" in name]:
        raise DataError(f"{shown(file)} holds {shown(wrong[0], 80)!r}, which is no name of a file.")
    return list(dict.fromkeys(names))


def opened_files(root: Path, files: Sequence[Path]) -> tuple[BoxedFiles, Report]:
    """Opens XML files below a folder, with their images."""
    report = Report(shown(root))
    rows = Rows(report, "object")
    images = layouts.Images(root)
    pages: list[Page] = []
    for file in files:
        try:
            page = read(file)
        except (BadPage, DataError) as error:
            report.add("unreadable", f"{file.name}: {error}")
            continue
        pages.append(page._replace(image=images.of(file, page.image)))
    objects = [entry for page in pages for entry in page.objects]
    ids = {name: number for number, name in enumerate(sorted({o.name for o in objects}), start=1)}
    for name, identity in ids.items():
        rows.category(identity, name)
    # Official files count pixels from 1, so that a side is one more than its edge; a tool that
    # writes a 0 writes edges.
    first = 0 if any(0 in entry.sides[:2] for entry in objects) else 1
    if not first:
        report.notes.append(
            "sides are read as edges, since some are 0: official files count pixels from 1"
        )
    hard = sum(entry.difficult for entry in objects)
    if hard:
        report.notes.append(f"{hard:,} objects are marked as difficult, and taken for crowds")
    for number, page in enumerate(pages, start=1):
        rows.image(number, page.image, *page.size)
        if not all(page.size):
            report.add("image_size", page.image)
        for place, entry in enumerate(page.objects):
            report.annotations += 1
            left, top, right, bottom = entry.sides
            box = left - first, top - first, right - left + first, bottom - top + first
            area = box[2] * box[3]
            rows.annotation(place, number, ids[entry.name], box, area, crowd=entry.difficult)
    return opened(root, rows.table(), report)


def read(file: Path) -> Page:
    """Reads one file.

    Raises:
      BadPage: it is no such XML.
      DataError: it is no regular file, or is too large.
    """
    data = read_small(file, _MOST_BYTES, follow=True, error=DataError)
    try:
        text = data.decode("utf-8-sig")
        # Entities, by which a few bytes become gigabytes or another file, need a declaration.
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise BadPage("it declares a document type, which is not read")
        page = ElementTree.fromstring(text.encode(), ElementTree.XMLParser(encoding="utf-8"))
    except UnicodeDecodeError:
        raise BadPage("it is no UTF-8 text") from None
    except ElementTree.ParseError as error:
        raise BadPage(f"it is no XML ({error})") from None
    if page.tag != "annotation":
        raise BadPage(f"it holds <{shown(page.tag, 40)}>, not <annotation>")
    height, width = (_whole(page.findtext(f"size/{side}")) for side in ("height", "width"))
    objects = [_object(entry) for entry in page.findall("object")]
    name = (page.findtext("filename") or "").strip()
    return Page(name, (height, width) if height and width else (0, 0), objects)


def _object(entry: ElementTree.Element) -> Object:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise BadPage("an object has no name")
    sides = tuple(_number(entry.findtext(f"bndbox/{side}"), name) for side in _SIDES)
    return Object(name, sides, (entry.findtext("difficult") or "").strip() == "1")


def _number(text: str | None, name: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise BadPage(
            f"an object {shown(name, 40)!r} has {shown(repr(text), 40)} as a side of its bndbox"
        ) from None


def _whole(text: str | None) -> int:
    """Height or width in pixels, 0 where it is none."""
    text = (text or "").strip()
    return int(text) if text.isdecimal() and len(text) < 7 else 0


KIND = Kind(
    ("voc:DIR",),
    functools.partial(make, open_part, _nothing),
    imagenet.MEAN,
    imagenet.STD,
    lambda _: (),
)
