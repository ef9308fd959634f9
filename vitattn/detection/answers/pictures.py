"""Pictures with detections on them, and all detections as one file, in a directory.

Beside a picture for each image, `detections.json` holds COCO's result format, a list of
{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, and with each "category_name".
Images on a disk have no number, so `image_id` is the name of the file, or its path as it was given
where two files have the same name. `category_id` is COCO's where the classes are those of COCO, so
that the file can be sent to its server; else the number of the class from 1.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from trainlib.errors import ConfigError, DataError, StorageError, one_of, shown
from trainlib.files import check_target, make_directory, write_atomically
from vitattn.detection.annotations import official
from vitattn.detection.answers.drawing import draw
from vitattn.detection.answers.results import as_xyxy, coco_results
from vitattn.images.decode import BadImage, guarded, open_picture
from vitattn.images.files import UnreadableRecord, read_image
from vitattn.images.given import OneImage, gather
from vitattn.labels.class_names import Names, as_unicode, numbered, printable

RESULTS = "detections.json"
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
QUALITY = 92  # of a JPEG: letters keep their edges
_JPEG_SIDE = 65_500
_LONGEST = 50  # letters of a name that are kept, each of at most 4 of the 255 bytes of a name
_UNSAFE = frozenset('/\\:*?"<>|')  # what some disk does not take


class BoxPictures:
    """Draws the detections of images one after the other.

    Args:
      directory: made where it is not there.
      images: the files, in the order of their numbers.
      names: of the classes.
      least: score from which a detection is drawn; the file holds all.

    Raises:
      ConfigError: a picture would replace an image that is read, or a link or folder has the name
        of one.
      StorageError: the directory cannot be made.
    """

    def __init__(self, directory: Path, images: Sequence[Path], names: Names, least: float):
        self.directory, self.least = directory, least
        self._images, self._files = images, file_names(images)
        self._ids = image_ids(images)
        self._words, self._names = printable(names), [as_unicode(name) for name in numbered(names)]
        self._categories = category_ids(names)
        self._found: list[dict[str, Any]] = []
        self._drawn = 0
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            make_directory(directory)
        except OSError as error:
            raise StorageError(
                f"--boxes={shown(directory)} cannot be made: {error.strerror or error}."
            ) from error
        self._check_targets()

    def _check_targets(self) -> None:
        there = {(status.st_dev, status.st_ino) for status in map(_status, self._images) if status}
        for name in (*self._files, RESULTS):
            target = self.directory / name
            check_target(target)
            status = _status(target)
            if status and (status.st_dev, status.st_ino) in there:
                raise ConfigError(
                    f"--boxes={shown(self.directory)}: the picture of boxes {shown(name)} would "
                    "replace an image that is read. Choose another directory."
                )

    def add(self, number: int, outputs: Mapping[str, np.ndarray]) -> None:
        """Draws one image, whose detections are finished; see `prediction.finish`.

        Raises:
          StorageError: the picture cannot be written.
        """
        boxes, scores, classes = (outputs[name] for name in ("boxes", "scores", "classes"))
        found = coco_results(self._ids[number], boxes, scores, classes, self._categories)
        for one, kind in zip(found, classes.tolist(), strict=True):
            self._found.append(one | {"category_name": self._names[kind]})
        chosen = scores >= self.least
        self._drawn += int(chosen.sum())
        found = as_xyxy(boxes)[chosen], scores[chosen], classes[chosen]
        drawn = draw(whole(self._images[number]), *found, self._words)
        _write(self.directory / self._files[number], encoded(drawn))

    def close(self) -> dict[str, str]:
        """Writes all detections as one file; returns what was written: label -> phrase.

        Raises:
          StorageError: the file cannot be written.
        """
        _write(self.directory / RESULTS, (json.dumps(self._found) + "\n").encode())
        drawn = f"{self._drawn:,} of {len(self._found):,}, from the score {self.least:g} on"
        hint = "; --min_score=0 draws all" if self._drawn < len(self._found) else ""
        return {
            "boxes drawn": f"{drawn}{hint}, in {shown(self.directory)}",
            "detections": shown(self.directory / RESULTS),
        }


def open_pictures(
    directory: Path, images: Sequence[Path], names: Names, least: float
) -> BoxPictures:
    """See `vitattn.task.Task.open_pictures`."""
    return BoxPictures(directory, images, names, least)


def _status(path: Path) -> os.stat_result | None:
    with contextlib.suppress(OSError, ValueError):
        return path.stat()
    return None


def whole(image: OneImage) -> Image.Image:
    """Returns all of an image, upright and in RGB.

    Raises:
      DataError: what is no image, or one that cannot be read.
    """
    (given,), _ = gather(image)
    what = shown(given) if isinstance(given, Path) else "The image"
    try:
        picture = open_picture(read_image(given) if isinstance(given, Path) else given)
        width, height = picture.width, picture.height
        return guarded(lambda: picture.render((0, 0, width, height), (height, width)))
    except (BadImage, UnreadableRecord) as error:
        raise DataError(f"{what} {error}.") from error


def encoded(picture: Image.Image, suffix: str = ".jpg") -> bytes:
    """Returns a picture as a file of one of `FORMATS`; a JPEG keeps its colours at full
    resolution, and what is longer than a JPEG can be is made smaller.
    """
    if FORMATS[suffix] == "JPEG" and max(picture.size) > _JPEG_SIDE:
        picture = ImageOps.contain(picture, (_JPEG_SIDE, _JPEG_SIDE))
    file = io.BytesIO()
    picture.save(file, FORMATS[suffix], quality=QUALITY, subsampling=0)
    return file.getvalue()


def save(picture: Image.Image, path: Path) -> None:
    """Writes a picture; the suffix of the path is one of `FORMATS`.

    Raises:
      ConfigError: another suffix, or a link or folder has the name.
      StorageError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise one_of("the format of a picture", suffix, FORMATS, str(path))
    _write(path, encoded(picture, suffix))


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise StorageError(
            f"{shown(path)} cannot be written: {error.strerror or error}."
        ) from error


def image_ids(images: Sequence[Path]) -> list[str]:
    """The name of each file; its path as it was given where the name is not the only one."""
    count = Counter(image.name for image in images)
    return [as_unicode(image.name if count[image.name] == 1 else image) for image in images]


def category_ids(names: Names) -> list[int]:
    """COCO's id of each class where the named ones are all of COCO's, else the numbers from 1."""
    ids = {name: number for number, name in official.NAMES.items()}
    if {name for name in names if name is not None} != set(ids):
        return list(range(1, len(names) + 1))
    return [0 if name is None else ids[name] for name in names]


def file_names(images: Sequence[Path]) -> list[str]:
    """Names for the pictures of images: alike, of printable letters, none twice however a disk
    compares them, none out of the directory.
    """
    taken: set[str] = set()
    names = []
    for image in images:
        letters = "".join(c if c.isprintable() and c not in _UNSAFE else "_" for c in image.stem)
        stem = letters.lstrip(".")[:_LONGEST].strip() or "image"
        name, number = stem, 1
        while _folded(name) in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(_folded(name))
        names.append(f"{name}.jpg")
    return names


def _folded(name: str) -> str:
    """What a disk that ignores case, or how a letter is composed, compares."""
    return unicodedata.normalize("NFKC", name).casefold()
