"""What `prepare --check` says of a data set with boxes, and the pictures that it draws of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from trainlib.errors import StorageError, shown, told_apart
from trainlib.files import make_directory
from vitattn.data.source import Checked
from vitattn.detection.answers.drawing import draw
from vitattn.detection.answers.pictures import save
from vitattn.detection.data import checks
from vitattn.detection.data.source import BoxedExample, BoxedSource
from vitattn.images.decode import BadImage, guarded, open_picture
from vitattn.images.files import UnreadableRecord

_PICTURES = 12  # of a split


def check_data(config: ConfigDict, boxes: Path | None) -> Checked:
    """Looks through the data set of a configuration, and draws a few images with their boxes.

    Args:
      config: all of it.
      boxes: a directory for the pictures, made where it is not there; None for none.

    Raises:
      StorageError: it cannot be written.
    """
    checked, found = checks.look(config)
    if boxes is not None:
        try:
            make_directory(boxes)
        except OSError as error:
            raise StorageError(
                f"--boxes={shown(boxes)} cannot be made: {error.strerror or error}."
            ) from error
        for part, source in found.items():
            count = _draw_some(source, boxes, part)
            checked.lines.append(f"pictures of {part}: {count}, in {shown(boxes)}")
    return checked


def _draw_some(source: BoxedSource, directory: Path, part: str) -> int:
    """Draws images from all over a split, those with boxes first; returns how many."""
    full = [n for n in range(len(source)) if len(source.truth(n).classes)] or range(len(source))
    pictures = min(len(full), _PICTURES)
    chosen = [full[n * len(full) // pictures] for n in range(pictures)]
    names = told_apart(source.class_names)[0]
    count = 0
    for record in chosen:
        try:
            picture = _drawn(source[record], [*names, *(f"crowd: {name}" for name in names)])
        except (UnreadableRecord, BadImage):
            continue  # it is counted already
        count += 1
        save(picture, directory / f"{part}_{count:02}.jpg")
    return count


def _drawn(example: BoxedExample, names: list[str]) -> Image.Image:
    """The picture with the boxes that training gets; a crowd has the number C more than its class
    and so the second half of the names.
    """
    picture = open_picture(example.image)
    width, height = picture.width, picture.height
    whole = guarded(lambda: picture.render((0, 0, width, height), (height, width)))
    numbers = example.classes + example.crowd * (len(names) // 2)
    corners = example.boxes[:, [1, 0, 3, 2]]
    return draw(whole, corners, np.full(len(corners), np.nan), numbers, names)
