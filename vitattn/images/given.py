"""Images as a caller in Python gives them: files, encoded bytes, pixels, pictures of Pillow.

H W image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from trainlib import paths
from trainlib.errors import DataError, shown
from vitattn.images.decode import BadImage, Pixels, guarded
from vitattn.images.files import find_images

OneImage = str | os.PathLike[str] | Image.Image | np.ndarray | bytes
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency

TAKEN = (
    "An image is a path, a picture of Pillow, the bytes of an image file, or a uint8 array "
    "[H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"
)


def gather(images: OneImage | Iterable[OneImage]) -> tuple[list[Path | Pixels], bool]:
    """Returns the images that were given, and whether it was one image and not a list.

    Args:
      images: one image, a list of them, or a uint8 array [B, H, W, C]. Folders in a list stand for
        the images below them, sorted by name.

    Raises:
      DataError: a file that does not exist, a folder in place of one image, or what is no image.
    """
    if isinstance(images, str | os.PathLike):
        path = _path(images)
        if path.is_dir():
            raise DataError(
                f"{shown(path)} is a folder, and one image was asked for. Give a list, "
                f"[{shown(repr(str(path)))}], to have an answer for each image in it."
            )
        return [*find_images([path])], True
    if isinstance(images, Image.Image | bytes) or (_is_array(images) and _ndim(images) != 4):
        return [_pixels(images)], True
    if not isinstance(images, Iterable):
        raise DataError(f"{TAKEN}; this is {type(images).__name__}.")
    return [found for image in images for found in _in_list(image)], False


def _in_list(image: Any) -> Sequence[Path | Pixels]:
    if isinstance(image, str | os.PathLike):
        return find_images([_path(image)])
    return [_pixels(image)]


def _path(text: str | os.PathLike[str]) -> Path:
    return paths.resolve(text, "path of an image")


def _is_array(image: Any) -> bool:
    return hasattr(image, "__array__") and hasattr(image, "dtype")


def _ndim(image: Any) -> int:
    return len(image.shape)


def _pixels(image: Any) -> Pixels:
    """One image in memory, as `decode.open_picture` takes it."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        return _copied(image)
    if not _is_array(image):
        raise DataError(f"{TAKEN}; this is {type(image).__name__}.")
    array = np.asarray(image)
    shape = " x ".join(map(str, array.shape)) or "no dimension"
    if array.dtype != np.uint8:
        hint = ""
        if array.dtype.kind == "f":
            hint = " Pixels from 0 to 1 become such by (255 * x).round().astype('uint8')."
        raise DataError(f"{TAKEN}; this is an array of the type {array.dtype}.{hint}")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in CHANNELS:
        hint = " A batch of grey images is [B, H, W, 1]." if array.ndim == 3 else ""
        raise DataError(f"{TAKEN}; this array is {shape}.{hint}")
    return np.ascontiguousarray(array)


def _copied(image: Image.Image) -> Image.Image:
    """An upright copy, so that neither reading nor turning it changes the caller's picture."""
    try:
        return guarded(lambda: ImageOps.exif_transpose(image))
    except BadImage as error:
        raise DataError(f"A picture of Pillow {error}.") from error
