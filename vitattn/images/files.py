"""Which files of a folder are images, in training and in prediction, and how their bytes are read.

An image is a regular file whose name ends in one of `SUFFIXES`; `trainlib.data.folders` says how
folders are walked.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from trainlib.data.folders import LeftOut, below
from trainlib.errors import DataError, nearest, shown
from trainlib.untrusted_files import read_small, what_is
from vitattn.images.decode import MAX_BYTES

# The names that files of the formats in `decode.FORMATS` have.
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".apng",
    ".gif",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)

NO_IMAGE = "not the suffix of an image that is read"
DEEP = "in a sub-folder of a class that has images itself"

_SIZED_FILES = 100_000


class UnreadableRecord(Exception):
    """A record whose bytes cannot be read; the message gives the reason.

    The pipeline counts such records and continues without them.
    """


def is_image(name: str) -> bool:
    """Whether the suffix of a file name is that of an image format that is read."""
    return name.lower().endswith(SUFFIXES)


def left_out(root: str | Path) -> LeftOut:
    """Returns a counter of the files below a folder that are not images."""
    return LeftOut(root, is_image, NO_IMAGE)


def read_image(path: str | Path) -> bytes:
    """Returns the bytes of an image file, after checking its size.

    Raises:
      UnreadableRecord: the file is missing, is not a regular file, is too large, or the disk fails.
    """
    try:
        return read_small(path, MAX_BYTES, follow=True, error=DataError)
    except DataError as error:
        reason = str(error).removeprefix(f"{shown(path)} ").removesuffix(".")
        raise UnreadableRecord(reason) from error
    except OSError as error:
        raise UnreadableRecord(f"cannot be read ({error.strerror or error})") from error


def sizes(root: Path, names: Sequence[str]) -> list[int]:
    """Returns the sizes in bytes of files below a folder, for a digest of them; -1 for one that is
    not there, and nothing at all for more than 100,000: asking a network disk for the size of a
    million files takes many minutes.
    """
    return [_size(root / name) for name in names] if len(names) <= _SIZED_FILES else []


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def find_images(given: Sequence[Path]) -> list[Path]:
    """Returns the files that were given, and the images below folders that were given, sorted by
    name; what is left out of a folder is reported on standard error.

    Raises:
      DataError: a path that does not exist (names the nearest), or a folder without images.
    """
    return [image for path in given for image in _images_at(path)]


def _images_at(path: Path) -> list[Path]:
    if os.path.isdir(path):
        left = left_out(path)
        images = sorted(map(Path, below([path], left)))
        for line in left.lines():
            print(line, file=sys.stderr)
        if not images:
            raise DataError(
                f"The folder {shown(path)} has no images: no file in it or below it ends in "
                f"{', '.join(SUFFIXES)}."
            )
        return images
    if os.path.exists(path):
        return [path]
    if os.path.lexists(path):
        raise DataError(f"There is no image {shown(path)}: it is {what_is(path)}.")
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        names = os.listdir(path.parent)
    raise DataError(f"There is no image {shown(path)}. {nearest(path.name, names)}")
