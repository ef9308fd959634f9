"""Reads a COCO JSON file into arrays, however large it is, and counts every mistake in it."""

from __future__ import annotations

import functools
import os
import re
import time
from array import array
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from trainlib.data.json_stream import elements
from trainlib.errors import DataError, shown
from trainlib.keys import brief
from trainlib.untrusted_files import open_regular
from vitattn.detection.annotations import segments
from vitattn.detection.annotations.report import Report
from vitattn.detection.annotations.rows import Rows
from vitattn.detection.annotations.table import Table

MOST_ENTRIES = 2**25  # 2 GiB of arrays; Objects365 has 30 million annotations

_SETTLED = 2 * 10**9  # nanoseconds since the last change; ticks of some disks are as long
_NUMBERS = frozenset((int, float))
_LONGEST_NAME = 4096
_LARGEST_SIDE = 2**20
_DRIVE = re.compile(r"[A-Za-z]:")


def read(path: str | Path) -> tuple[Table, Report]:
    """Reads a file of annotations once; the same file again costs nothing while it does not change.

    Raises:
      DataError: it is absent, is not JSON, or is something else than COCO's annotations. Mistakes
        in its entries are counted in the report, which says whether they can be lived with.
    """
    path = os.fspath(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    if time.time_ns() - status.st_mtime_ns < _SETTLED:  # it could change within one tick
        return _read_now(path)
    return _read_again(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_again(path: str, size: int, changed: int) -> tuple[Table, Report]:
    return _read_now(path)


def _read_now(path: str) -> tuple[Table, Report]:
    report = Report(shown(path))
    rows = Rows(report)
    annotations = _Annotations(rows)
    with open_regular(path, follow=True, error=DataError) as file:
        _check_first(file, report.what)
        found: list[str] = []
        for member, number, value in elements(file, report.what):
            if member not in found:
                found.append(member)
            if number is None or number < 0:
                continue
            if number >= MOST_ENTRIES:
                raise DataError(f"{report.what} has more than {MOST_ENTRIES:,} {member}.")
            if member == "annotations":
                annotations.add(number, value)
            elif member == "images":
                _image(rows, number, value)
            elif member == "categories":
                _category(rows, number, value)
    if "images" not in found and "annotations" not in found:
        holds = ", ".join(shown(repr(name), 40) for name in found[:8]) or "nothing"
        raise DataError(
            f"{report.what} is no file of COCO's annotations, which has 'images', 'annotations' "
            f"and 'categories': it holds {holds}."
        )
    annotations.check_ids()
    return rows.table(), report


def _check_first(file: BinaryIO, what: str) -> None:
    """Refuses a list, which is what results are, by a message of its own."""
    first = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    file.seek(0)
    if first == b"[":
        raise DataError(
            f"{what} holds a list, as results of detection do. Annotations are one object with "
            "'images', 'annotations' and 'categories'."
        )


def _image(rows: Rows, number: int, entry: Any) -> None:
    report = rows.report
    identity = _whole(entry.get("id"), report, "image_float") if isinstance(entry, dict) else None
    if identity is None:
        report.add("image_form", f"number {number + 1}: {brief(entry, 80)}")
        return
    name = _file_name(entry.get("file_name"), report)
    if not name:
        report.add("file_name", f"image {identity}: {brief(entry.get('file_name'), 80)}")
    height, width = (_side(entry.get(key)) for key in ("height", "width"))
    if not height or not width:
        report.add("image_size", name)
        height = width = 0
    rows.image(identity, name, height, width)


def _file_name(name: Any, report: Report) -> str:
    """The name, if it is one of a file below a folder; else ""."""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or "\0" in name:
        return ""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair that stands for no byte
        return ""
    if "\\" in name:
        report.add("backslash", name)
        name = name.replace("\\", "/")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or parts[-1] in ("", ".") or _DRIVE.match(name):
        return ""
    return "/".join(part for part in parts if part not in ("", "."))


def _side(value: Any) -> int:
    """Height or width in pixels, 0 where it is none."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 < value < _LARGEST_SIDE else 0


def _category(rows: Rows, number: int, entry: Any) -> None:
    report = rows.report
    identity = _whole(entry.get("id"), report, "image_float") if isinstance(entry, dict) else None
    name = entry.get("name") if isinstance(entry, dict) else None
    if identity is None or identity < 0 or not isinstance(name, str):
        report.add("category_form", f"number {number + 1}: {brief(entry, 80)}")
    elif not name.strip() or len(name) > _LONGEST_NAME or not _is_unicode(name):
        report.add("no_name", f"category {identity}")
    else:
        rows.category(identity, name)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole(value: Any, report: Report, trap: str) -> int | None:
    """An id, None where it is none; 17.0 is 17, and counted."""
    if type(value) is float and value.is_integer():
        report.add(trap, f"{value}")
        value = int(value)
    return value if type(value) is int and abs(value) < 2**63 else None


def _large(*ids: int) -> bool:
    """Whether one is beyond 64 bits."""
    return any(identity.bit_length() > 63 for identity in ids)


class _Annotations:
    """Adds annotations to rows, and counts what is wrong with one by itself."""

    def __init__(self, rows: Rows):
        self._rows, self._report = rows, rows.report
        self._ids = array("q")

    def add(self, number: int, entry: Any) -> None:
        """Adds one, or counts it as broken."""
        self._report.annotations += 1
        try:
            self._add(number, entry)
        except _Broken as broken:
            named = f"number {number + 1}"
            if isinstance(entry, dict):
                named += f" of image {brief(entry.get('image_id'), 40)}"
            detail = f": {broken.detail}" if broken.detail else ""
            self._report.add(broken.trap, f"annotation {named}{detail}")

    def _add(self, number: int, entry: Any) -> None:
        if type(entry) is not dict:
            raise _Broken("annotation_form", brief(entry, 60))
        image, category = entry.get("image_id"), entry.get("category_id")
        box = entry.get("bbox")
        if not box:
            box = self._box_of_segments(entry)
        if type(image) is not int or type(category) is not int or _large(image, category):
            image, category = (
                _whole(n, self._report, "reference_float") for n in (image, category)
            )
        if image is None or category is None:
            given = brief(entry.get("image_id"), 40), brief(entry.get("category_id"), 40)
            raise _Broken("reference_form", f"image_id {given[0]}, category_id {given[1]}")
        if type(box) is not list or len(box) != 4:
            raise _Broken("box_form", brief(box, 60))
        if not _NUMBERS.issuperset(map(type, box)):
            raise _wrong_number(box)
        area, crowd = _area(entry.get("area")), self._crowd(entry.get("iscrowd"))
        try:
            self._rows.annotation(number, image, category, box, area, crowd)
        except OverflowError:  # a whole number that no float holds
            raise _Broken("box_form", brief(box, 60)) from None
        self._note_id(entry)

    def _crowd(self, value: Any) -> bool:
        if type(value) is bool or (type(value) is int and value in (0, 1)):
            return bool(value)
        self._report.add("no_crowd", "" if value is None else brief(value, 40))
        return False

    def _note_id(self, entry: dict[str, Any]) -> None:
        identity = entry.get("id")
        if type(identity) is int and abs(identity) < 2**63:
            self._ids.append(identity)
        elif identity is None:
            self._report.add("no_id")
        else:
            self._report.add("id_form", brief(identity, 40))

    def _box_of_segments(self, entry: dict[str, Any]) -> list[float]:
        segmentation = entry.get("segmentation")
        if not segmentation:
            for key, trap in (("caption", "captions"), ("segments_info", "panoptic")):
                if key in entry:
                    raise _Broken(trap)
            raise _Broken("no_geometry")
        try:
            box, kind = segments.box_of(segmentation)
        except segments.NoSegment as error:
            raise _Broken("polygon_form", str(error)) from None
        self._report.add(f"from_{kind}")
        return list(box)

    def check_ids(self) -> None:
        """Counts ids of annotations that pycocotools stumbles over; nothing here uses them."""
        ids = np.asarray(self._ids, np.int64)
        self._report.add_all("id_zero", (), int(np.count_nonzero(ids == 0)))
        values, counts = np.unique(ids, return_counts=True)
        twice = values[counts > 1].tolist()
        self._report.add_all("id_twice", map(str, twice), int((counts[counts > 1] - 1).sum()))


def _area(value: Any) -> float:
    """The area, NaN where it is none."""
    if type(value) is float or (type(value) is int and not _large(value)):
        return float(value)
    return float("nan")


class _Broken(Exception):
    """An annotation that cannot be used: a trap of `report.TRAPS`, and what stands there."""

    def __init__(self, trap: str, detail: str = ""):
        super().__init__(trap)
        self.trap, self.detail = trap, detail


def _wrong_number(box: list[Any]) -> _Broken:
    kinds = set(map(type, box))
    trap = "box_text" if str in kinds else "box_truth" if bool in kinds else "box_form"
    return _Broken(trap, brief(box, 80))
