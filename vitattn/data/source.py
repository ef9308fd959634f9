"""What is read: a source is a list of examples that can be opened at random, made from
`data.source`.

An image is uint8 pixels [H, W, C] or the bytes of an encoded file; a label is in 0..num_classes-1.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, Protocol

import numpy as np

from trainlib.data.batches import record_order
from trainlib.errors import ConfigError, DataError, nearest

Rgb = tuple[float, float, float]

SPLITS = ("train", "holdout", "test")

# Of ImageNet's training images, in units of the full range; also the default for folders.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The seed of every fixed division of a data set into parts. It is part of their definition, not a
# setting.
SPLIT_SEED = 19_04_09925


class Example(NamedTuple):
    """One record: uint8 pixels [H, W, C] or an encoded file, and its class."""

    image: np.ndarray | bytes
    label: int


class UnreadableRecord(Exception):
    """A record whose bytes cannot be had; the message says why. The pipeline counts it and goes
    on."""


class Source(Protocol):
    """A data set with random access. It pickles to worker processes, so files are opened on first
    use."""

    num_classes: int
    class_names: tuple[str, ...]
    # Changes when the number, names or sizes of the records do; kept in checkpoints.
    digest: str
    # The whole set lies in memory, and reading it costs nothing.
    in_memory: bool
    # Lines that say what was found where it lies and is not in it.
    left_out: tuple[str, ...]
    # Mean and standard deviation of its training pixels in RGB, in units of the full range.
    mean: Rgb
    std: Rgb

    def __len__(self) -> int: ...

    def __getitem__(self, record: int) -> Example:
        """Reads one record; raises UnreadableRecord."""
        ...

    def describe(self, record: int) -> str:
        """Says where the record lies (file, offset), for messages."""
        ...


class Subset:
    """The chosen records of another source, in ascending order."""

    def __init__(self, parent: Source, records: np.ndarray, name: str):
        self.parent = parent
        self.records = np.sort(records)
        self.num_classes, self.class_names = parent.num_classes, parent.class_names
        self.in_memory, self.mean, self.std = parent.in_memory, parent.mean, parent.std
        self.left_out = parent.left_out
        self.digest = short_digest(parent.digest, name, self.records.tobytes())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, record: int) -> Example:
        return self.parent[int(self.records[record])]

    def describe(self, record: int) -> str:
        return self.parent.describe(int(self.records[record]))


def hold_out(train: Source, fraction: float, split: str) -> Source:
    """Divides a training set: `holdout` is a fixed random `fraction` of it, `train` the rest."""
    if not 0 <= fraction < 1:
        raise ConfigError(f"data.holdout={fraction} is not a fraction: use 0 <= holdout < 1.")
    held = round(fraction * len(train))
    if split == "holdout" and held == 0:
        raise ConfigError(
            "the split 'holdout' is empty: set the part of the training set to hold out, "
            "for example --config.data.holdout=0.04."
        )
    if not held:
        return train
    order = record_order(SPLIT_SEED, 0, len(train))
    records = order[:held] if split == "holdout" else order[held:]
    return Subset(train, records, f"{split} {fraction}")


def short_digest(*parts: object) -> str:
    """Returns 16 hexadecimal digits that change when any part does."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else encoded(str(part)))
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def encoded(name: str) -> bytes:
    """The bytes of a text, of a file name that is no UTF-8 too."""
    return name.encode("utf-8", "surrogateescape")


def make_source(config: Any, split: str) -> Source:
    """Opens the split `train`, `holdout` or `test` of the data set that `config.source` names.

    Args:
      config: the `data` part of a configuration (see `data_defaults`).
      split: `test` is the official evaluation split (for ImageNet that is its validation set);
        `holdout` the
        part `config.holdout` of the training set, which `train` then leaves out.

    Raises:
      DataError: the data set is absent or not what it should be.
      ConfigError: no such source or split.
    """
    from vitattn.data import cifar, embedded, folder
    from vitattn.data import tfds as tfds_source

    if split not in SPLITS:
        raise ConfigError(f"split={split!r} is not known. Allowed: {', '.join(SPLITS)}.")
    name, _, argument = config.source.partition(":")
    makers = {
        "imagenet": tfds_source.imagenet,
        "folder": folder.make,
        "digits": embedded.digits,
        "synthetic": embedded.synthetic,
        "cifar100": cifar.make,
    }
    if name not in makers:
        raise ConfigError(
            f"data.source={config.source!r} is not known. {nearest(name, makers)}"
            "Allowed: imagenet, folder:PATH, digits, synthetic (or synthetic:CLASSES), cifar100."
        )
    if argument and name not in ("folder", "synthetic"):
        raise ConfigError(f"data.source={config.source!r}: '{name}' takes nothing after a colon.")
    return makers[name](config, argument, split)


def check_classes(source: Source, num_classes: int) -> None:
    """Raises DataError when the source has labels that a model with `num_classes` outputs cannot
    give."""
    if source.num_classes > num_classes:
        raise DataError(
            f"the data set has {source.num_classes} classes (labels 0..{source.num_classes - 1}, "
            f"the last is '{source.class_names[-1]}') and the model has {num_classes} outputs. "
            f"Set --config.model.num_classes={source.num_classes}."
        )
