"""Which files of a folder are images, for training and for prediction; how one is read.

An image is a regular file whose name ends in one of `SUFFIXES`; `trainlib.data.folders` has the
rest of the rule.
"""

from __future__ import annotations

from pathlib import Path

from trainlib.data.folders import LeftOut
from trainlib.errors import DataError, shown
from trainlib.untrusted_files import read_small
from vitattn.data.decode import MAX_BYTES
from vitattn.data.source import UnreadableRecord

# What files of the formats in `images.FORMATS` are called.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)

NO_IMAGE = "not the suffix of an image that is read"
DEEP = "in a sub-folder of a class that has images itself"


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(SUFFIXES)


def left_out(root: str | Path) -> LeftOut:
    """What counts the files below a folder that are no images."""
    return LeftOut(root, is_image, NO_IMAGE)


def read_image(path: str | Path) -> bytes:
    """The bytes of an image file; its size is known before they are read.

    Raises:
      UnreadableRecord: it is gone, is no regular file, is too large, or the disk fails.
    """
    try:
        return read_small(path, MAX_BYTES, follow=True, error=DataError)
    except DataError as error:
        reason = str(error).removeprefix(f"{shown(path)} ").removesuffix(".")
        raise UnreadableRecord(reason) from error
    except OSError as error:
        raise UnreadableRecord(f"cannot be read ({error.strerror or error})") from error
