"""A data set whose images are in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitattn.data.source import Example
from vitattn.images.decode import Rgb


class Arrays:
    """N images uint8 [N, H, W, C] and their labels [N]."""

    in_memory = True
    left_out: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        mean: Rgb,
        std: Rgb,
        digest: str,
    ):
        self.name, self.images, self.labels = name, images, labels
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.mean, self.std, self.digest = mean, std, digest

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, record: int) -> Example:
        return Example(self.images[record], int(self.labels[record]))

    def describe(self, record: int) -> str:
        return f"{self.name} record {record}"
