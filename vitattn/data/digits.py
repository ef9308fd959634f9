"""Handwritten digits that need no download: the test set of the UCI "Optical Recognition of
Handwritten Digits" data, as scikit-learn ships it.

1,797 grey images of 8x8 pixels with 17 levels.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from trainlib.data.order import record_order
from trainlib.errors import DataError
from vitattn.data.source import SPLIT_SEED, Arrays, Kind, Source, hold_out, short_digest

CLASS_NAMES = tuple("0123456789")

# Of the training split, in units of the full range.
MEAN = (0.305, 0.305, 0.305)
STD = (0.376, 0.376, 0.376)

# 36 of each of the 10 digits are the test split: 360 of the 1,797.
_TEST_PER_DIGIT = 36


def make(config: ConfigDict, split: str) -> Source:
    """Opens a split of the digits.

    The division is fixed: of each digit, the 36 records that come first in
    `record_order(SPLIT_SEED, 0, 1797)` are the test split (360), the others the training split
    (1,437).

    Raises:
      DataError: scikit-learn is not installed, or its file is damaged.
    """
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
        CLASS_NAMES,
        MEAN,
        STD,
        short_digest(pixels[chosen].tobytes(), labels[chosen].tobytes()),
    )
    return source if split == "test" else hold_out(source, config.holdout, split)


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 [1797, 8, 8, 1] and int64 [1797] from scikit-learn's file, without its 4 s
    import."""
    package = importlib.util.find_spec("sklearn")
    folders = (package.submodule_search_locations if package else None) or []
    files = [Path(folder) / "datasets" / "data" / "digits.csv.gz" for folder in folders]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise DataError(
            "the digits come with scikit-learn (datasets/data/digits.csv.gz), which is not "
            "installed here. Install it: pip install scikit-learn."
        )
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    if table.shape != (1797, 65) or table.min() < 0 or table[:, :64].max() > 16:
        raise DataError(
            f"{path} holds {table.shape} numbers where 1797 x 65 were expected: damaged?"
        )
    pixels = (table[:, :64] * 255 + 8) // 16
    return pixels.astype(np.uint8).reshape(-1, 8, 8, 1), table[:, 64]


KIND = Kind(("digits",), make, MEAN, STD, lambda _: CLASS_NAMES)
