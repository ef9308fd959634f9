"""Data sets that need no download: 1,797 real handwritten digits, and made-up images to measure
speed with."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainlib.data.batches import record_order
from trainlib.errors import ConfigError, DataError
from vitattn.data import label_names
from vitattn.data.source import SPLIT_SEED, Example, Rgb, Source, hold_out, short_digest

# 36 of each of the 10 digits are the test split: 360 of the 1,797.
_TEST_PER_DIGIT = 36

_SYNTHETIC_CLASSES = 1000
_SYNTHETIC_SIZE = 256
_SYNTHETIC_RECORDS = {"train": 1_281_167, "test": 50_000}


class Arrays:
    """Images that lie in memory: uint8 [N, H, W, C] and labels [N]."""

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


def digits(config: Any, argument: str, split: str) -> Source:
    """The test set of the UCI "Optical Recognition of Handwritten Digits" data, as scikit-learn
    ships it.

    1,797 grey images of 8x8 pixels with 17 levels. The split is fixed: of each digit, the 36
    records that come first in `record_order(SPLIT_SEED, 0, 1797)` are the test split (360), the
    others the training split (1,437).
    """
    del argument
    pixels, labels = _read_digits()
    order = record_order(SPLIT_SEED, 0, len(labels))
    test = np.concatenate([order[labels[order] == d][:_TEST_PER_DIGIT] for d in range(10)])
    records = np.zeros(len(labels), bool)
    records[test] = True
    chosen = np.flatnonzero(records if split == "test" else ~records)
    source = Arrays(
        f"digits {'test' if split == 'test' else 'train'}",
        pixels[chosen],
        labels[chosen],
        label_names.DIGITS,
        # Of the training split, in units of the full range.
        (0.305, 0.305, 0.305),
        (0.376, 0.376, 0.376),
        short_digest(pixels[chosen].tobytes(), labels[chosen].tobytes()),
    )
    return source if split == "test" else hold_out(source, config.holdout, split)


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 [1797, 8, 8, 1] and int64 [1797] from scikit-learn's file, without its 4 s
    import."""
    package = importlib.util.find_spec("sklearn")
    places = (package.submodule_search_locations if package else None) or []
    files = [Path(p) / "datasets" / "data" / "digits.csv.gz" for p in places]
    found = next((f for f in files if f.is_file()), None)
    if found is None:
        raise DataError(
            "the digits come with scikit-learn (datasets/data/digits.csv.gz), which is not "
            "installed here. Install it: pip install scikit-learn."
        )
    with gzip.open(found, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    if table.shape != (1797, 65) or table.min() < 0 or table[:, :64].max() > 16:
        raise DataError(
            f"{found} holds {table.shape} numbers where 1797 x 65 were expected: damaged?"
        )
    pixels = (table[:, :64] * 255 + 8) // 16
    return pixels.astype(np.uint8).reshape(-1, 8, 8, 1), table[:, 64]


class Synthetic:
    """Made-up images of 256x256 pixels, cheap to make: they measure speed and prove nothing
    else."""

    in_memory = True
    left_out: tuple[str, ...] = ()
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, classes: int, split: str):
        self.num_classes = classes
        self.class_names = label_names.synthetic(classes)
        self.split = split
        self.digest = short_digest("synthetic", classes, split)

    def __len__(self) -> int:
        return _SYNTHETIC_RECORDS[self.split]

    def __getitem__(self, record: int) -> Example:
        """Coarse coloured noise, one fixed picture a record."""
        bits = np.random.Philox(key=record, counter=len(self))
        coarse = bits.random_raw(32 * 32 * 3 // 8).view(np.uint8).reshape(32, 32, 3)
        repeat = _SYNTHETIC_SIZE // 32
        return Example(
            coarse.repeat(repeat, axis=0).repeat(repeat, axis=1), record % self.num_classes
        )

    def describe(self, record: int) -> str:
        return f"synthetic {self.split} record {record}"


def synthetic(config: Any, argument: str, split: str) -> Source:
    """Made-up images, as many as ImageNet has; `synthetic:10` has 10 classes instead of 1000."""
    classes = int(argument) if argument.isdecimal() else 0 if argument else _SYNTHETIC_CLASSES
    if classes < 1:
        raise ConfigError(
            f"data.source={config.source!r}: after 'synthetic:' comes the number of classes, for "
            "example synthetic:10."
        )
    if split == "test":
        return Synthetic(classes, "test")
    return hold_out(Synthetic(classes, "train"), config.holdout, split)
