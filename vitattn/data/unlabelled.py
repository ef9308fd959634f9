"""Image files without labels as a data set, for prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainlib.errors import shown
from vitattn.data.source import Example, short_digest
from vitattn.images import files
from vitattn.images.decode import Rgb


class Unlabelled:
    """Image files in a given order, each with the label 0: a `vitattn.data.source.Source`."""

    in_memory = False
    left_out: tuple[str, ...] = ()
    num_classes, class_names = 1, ("",)

    def __init__(self, paths: Sequence[Path], mean: Rgb, std: Rgb):
        self.paths, self.mean, self.std = tuple(paths), mean, std
        self.digest = short_digest(*paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, record: int) -> Example:
        return Example(files.read_image(self.paths[record]), 0)

    def describe(self, record: int) -> str:
        return shown(self.paths[record], 1000)
