"""Images in class sub-folders: PATH/train/<class>/x.jpg with PATH/val/<class>/x.jpg, or
PATH/<class>/x.jpg.

The classes are the sub-folders of the training folder in alphabetical order. Without a validation
folder, the split `test` is the fixed part `data.holdout` of each class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from trainlib import paths
from trainlib.data.folders import LeftOut, below, listing, some
from trainlib.errors import ConfigError, DataError, shown, told_apart
from vitattn.data import imagenet
from vitattn.data.source import Example, Kind, Source, argument_of, encoded, short_digest
from vitattn.images import files

_EVAL_NAMES = ("val", "validation", "valid", "test")


class Files:
    """Image files with labels: N names relative to `root`, labels int [N]; `left_out` reports other
    files below `root`."""

    in_memory = False
    mean = imagenet.MEAN
    std = imagenet.STD

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: np.ndarray,
        classes: Sequence[str],
        left_out: tuple[str, ...] = (),
    ):
        self.root, self.names, self.labels = root, tuple(names), labels
        self.left_out = left_out
        self.class_names, self.num_classes = tuple(classes), len(classes)
        sizes = files.sizes(root, self.names)
        self.digest = short_digest("\n".join(names), sizes, "\n".join(classes))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, record: int) -> Example:
        image = files.read_image(self.root / self.names[record])
        return Example(image, int(self.labels[record]))

    def describe(self, record: int) -> str:
        return shown(self.root / self.names[record], 1000)


def make(config: ConfigDict, split: str) -> Source:
    """Opens a split of `folder:PATH`.

    Raises:
      DataError: no such folder, no images, or another layout than the two above; the message
        reports what the folder holds.
    """
    argument = argument_of(config.source)
    if not argument:
        raise ConfigError("data.source='folder' needs a path: --config.data.source=folder:PATH.")
    root = paths.resolve(argument, "data.source")
    _check_name(root)
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data.source: {shown(root)} {state}. {_expected(root)}")
    train = root / "train" if (root / "train").is_dir() else root
    named = [root / name for name in _EVAL_NAMES if train != root]
    evaluation = next((path for path in named if path.is_dir()), None)
    left = files.left_out(root)
    if train != root:
        _count_beside(root, (train, evaluation), left)
    classes = _class_folders(train, left)
    if split == "test" and evaluation is not None:
        folders = _class_folders(evaluation, left)
        unknown = [name for name in folders if name not in classes]
        if unknown:
            theirs, ours = told_apart(unknown, classes)
            raise DataError(
                f"{shown(evaluation)} has {len(unknown)} class folders that {shown(train)} lacks: "
                f"{some(theirs)}. The classes of training are: {some(ours)}."
            )
        return _files(evaluation, classes, [name for name in classes if name in folders], left)
    everything = _files(train, classes, classes, left)
    return _part(everything, config.holdout, split, official=evaluation is not None)


def _check_name(root: Path) -> None:
    try:
        str(root).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"data.source: the folder {shown(root)} has a name that is no UTF-8, which the "
            "configuration of a run cannot keep. Rename it, or give a link to it that has another "
            "name (ln -s). The folders and images in it may have names of any kind."
        ) from None


def _count_beside(root: Path, read: Sequence[Path | None], left: LeftOut) -> None:
    folders, images, _ = listing(root, left)
    for name in folders:
        if root / name not in read:
            left.add(str(root / name), "beside the folders that are read", "folder")
    for name in images:
        left.add(str(root / name), "outside the class folders")


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
            f"{shown(source.root)}: data.holdout={holdout:g} does not say which part of the images "
            f"to keep for evaluation ({why} taken out of the training images). Use for example "
            "--config.data.holdout=0.1."
        )
    held_out = np.zeros(len(source), bool)
    for label in range(source.num_classes):
        records = np.flatnonzero(source.labels == label)
        ranked = sorted(records, key=lambda r: hashlib.sha256(encoded(source.names[r])).digest())
        count = max(1, round(holdout * len(ranked))) if len(ranked) > 1 else 0
        held_out[ranked[:count]] = True
    chosen = np.flatnonzero(~held_out if split == "train" else held_out)
    if not len(chosen):
        raise DataError(f"{shown(source.root)}: no class has two images, so none can be held out.")
    names = [source.names[record] for record in chosen]
    return Files(source.root, names, source.labels[chosen], source.class_names, source.left_out)


def _files(root: Path, classes: Sequence[str], present: Sequence[str], left: LeftOut) -> Files:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if name in present:
            images = _images(root / name, left)
            names += [f"{name}/{image}" for image in images]
            labels += [label] * len(images)
    return Files(root, names, np.asarray(labels, np.int64), classes, left.lines())


def _class_folders(root: Path, left: LeftOut) -> list[str]:
    folders, images, others = listing(root, left, strict=True)
    if folders:
        for name in images:
            left.add(str(root / name), "outside the class folders")
        return folders
    content = f"{len(images)} images but no class folders"
    if not images:
        content = f"{len(others)} files, no folders"
    raise DataError(f"{shown(root)} has {content}. {_expected(left.root)}")


def _images(folder: Path, left: LeftOut) -> list[str]:
    """Returns the names of the images of one class; raises DataError when there are none."""
    folders, images, others = listing(folder, left)
    if images:
        for image in below((folder / name for name in folders), left, known=folder):
            left.add(image, files.DEEP)
        return images
    if folders:
        raise DataError(
            f"{shown(folder)} holds folders ({some(folders)}) where the images of the class "
            f"'{shown(folder.name)}' were expected. If its folders are the classes, use "
            f"--config.data.source=folder:{shown(folder)}. {_expected(left.root)}"
        )
    other = f" ({len(others)} other files: {some(others)})" if others else ""
    raise DataError(
        f"the class folder {shown(folder)} has no images{other}. Read are: "
        f"{', '.join(files.SUFFIXES)}. Fill or remove it."
    )


def _expected(root: str | Path) -> str:
    """The two layouts, below the folder that data.source names."""
    given = shown(root)
    official = f"{given}/train/<class>/*.jpg and {given}/val/<class>/*.jpg"
    return f"Expected: {official}, or {given}/<class>/*.jpg."


KIND = Kind(("folder:PATH",), make, imagenet.MEAN, imagenet.STD, lambda _: ())
