"""Images in class sub-folders: PATH/train/<class>/x.jpg with PATH/val/<class>/x.jpg, or
PATH/<class>/x.jpg.

The classes are the sub-folders of the training folder in alphabetical order. Without a validation
folder, the split `test` is the fixed part `data.holdout` of each class.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainlib.errors import ConfigError, DataError
from vitattn.data.sources import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Example,
    Source,
    UnreadableRecord,
    short_digest,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_EVAL_NAMES = ("val", "validation", "valid", "test")

# Above this many files only their names count for the digest: asking a network disk for the size of
# a million files takes many minutes.
_SIZED_FILES = 100_000


class Files:
    """Image files with labels: names relative to `root`, one label for each."""

    in_memory = False
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(
        self, root: Path, names: Sequence[str], labels: np.ndarray, classes: Sequence[str]
    ):
        self.root, self.names, self.labels = root, tuple(names), labels
        self.class_names, self.num_classes = tuple(classes), len(classes)
        sizes = [_size(root / name) for name in names] if len(names) <= _SIZED_FILES else []
        self.digest = short_digest("\n".join(names), sizes, "\n".join(classes))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, record: int) -> Example:
        try:
            return Example((self.root / self.names[record]).read_bytes(), int(self.labels[record]))
        except OSError as error:
            raise UnreadableRecord(f"cannot be read ({error.strerror or error})") from error

    def describe(self, record: int) -> str:
        return str(self.root / self.names[record])


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def make(config: Any, argument: str, split: str) -> Source:
    """Opens `folder:PATH`.

    Raises:
      DataError: no such folder, no images, or another layout than the two above; the message says
        what is there.
    """
    if not argument:
        raise ConfigError("data.source='folder' needs a path: --config.data.source=folder:PATH.")
    root = Path(argument).expanduser()
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data.source: {root} {state}. {_expected(root)}")
    train = root / "train" if (root / "train").is_dir() else root
    named = [root / name for name in _EVAL_NAMES if train != root]
    evaluation = next((path for path in named if path.is_dir()), None)
    classes = _class_folders(train)
    if split == "test" and evaluation is not None:
        found = _class_folders(evaluation)
        strange = [name for name in found if name not in classes]
        if strange:
            raise DataError(
                f"{evaluation} has {len(strange)} class folders that {train} lacks: "
                f"{_some(strange)}. The classes of training are: {_some(classes)}."
            )
        return _files(evaluation, classes, [name for name in classes if name in found])
    everything = _files(train, classes, classes)
    return _part(everything, config.holdout, split, official=evaluation is not None)


def _part(source: Files, holdout: float, split: str, official: bool) -> Files:
    """Returns the records of one split of a training folder, divided within each class.

    The files of a class whose names hash lowest are held out, so that adding files moves few
    others.
    """
    if split == "train" and not holdout:
        return source
    if not 0 < holdout < 1:
        why = (
            "the split 'holdout' is"
            if official
            else "there is no folder val beside train, so it is"
        )
        raise DataError(
            f"{source.root}: data.holdout={holdout:g} does not say which part of the images to "
            f"keep for evaluation ({why} taken out of the training images). Use for example "
            "--config.data.holdout=0.1."
        )
    held = np.zeros(len(source), bool)
    for label in range(source.num_classes):
        records = np.flatnonzero(source.labels == label)
        ranked = sorted(records, key=lambda r: hashlib.sha256(source.names[r].encode()).digest())
        count = max(1, round(holdout * len(ranked))) if len(ranked) > 1 else 0
        held[ranked[:count]] = True
    chosen = np.flatnonzero(~held if split == "train" else held)
    if not len(chosen):
        raise DataError(f"{source.root}: no class has two images, so none can be held out.")
    names = [source.names[record] for record in chosen]
    return Files(source.root, names, source.labels[chosen], source.class_names)


def _files(root: Path, classes: Sequence[str], present: Sequence[str]) -> Files:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if name in present:
            images = _images(root / name)
            names += [f"{name}/{image}" for image in images]
            labels += [label] * len(images)
    return Files(root, names, np.asarray(labels, np.int64), classes)


def _class_folders(root: Path) -> list[str]:
    folders, files = _list(root)
    if folders:
        return folders
    images = sum(map(_is_image, files))
    there = f"{images} images but no class folders" if images else f"{len(files)} files, no folders"
    raise DataError(f"{root} has {there}. {_expected(root)}")


def _images(folder: Path) -> list[str]:
    """Returns the names of the images of one class; raises DataError when there are none."""
    folders, files = _list(folder)
    images = [name for name in files if _is_image(name)]
    if images:
        return images
    if folders:
        raise DataError(
            f"{folder} holds folders ({_some(folders)}) where the images of the class "
            f"'{folder.name}' were expected. If its folders are the classes, use "
            f"--config.data.source=folder:{folder}. {_expected(folder.parent)}"
        )
    other = f" ({len(files)} other files: {_some(files)})" if files else ""
    raise DataError(
        f"the class folder {folder} has no images{other}. Read are: {', '.join(SUFFIXES)}. Fill "
        "or remove it."
    )


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the sorted names of (folders, files), without hidden ones and what archives leave."""
    path = folder
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = entry.path
                if not entry.name.startswith((".", "__")):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:  # no permission, or a link that leads to itself
        raise DataError(f"{path} cannot be opened: {error.strerror or error}.") from error
    return sorted(folders), sorted(files)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _expected(root: Path) -> str:
    official = f"{root}/train/<class>/*.jpg and {root}/val/<class>/*.jpg"
    return f"Expected: {official}, or {root}/<class>/*.jpg."
