"""Images without labels as a data set, for prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainlib.errors import shown
from vitattn.data.source import Example, short_digest
from vitattn.images import files
from vitattn.images.decode import Pixels, Rgb


class Unlabelled:
    """Images in a given order, each with the label 0: a `vitattn.data.source.Source`.

    Args:
      images: files, or images that are in memory.
      mean: by which they are normalised.
      std: the same.
    """

    in_memory = False
    left_out: tuple[str, ...] = ()
    num_classes, class_names = 1, ("",)

    def __init__(self, images: Sequence[Path | Pixels], mean: Rgb, std: Rgb):
        self.images, self.mean, self.std = tuple(images), mean, std
        self.digest = short_digest(*map(self.describe, range(len(self.images))))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, record: int) -> Example:
        image = self.images[record]
        return Example(files.read_image(image) if isinstance(image, Path) else image, 0)

    def describe(self, record: int) -> str:
        image = self.images[record]
        return shown(image, 1000) if isinstance(image, Path) else f"image {record}"
