"""What every data set offers: examples with random access (`Source`), and what stands for a kind of
data set in `data.source` (`Kind`).

An image is uint8 pixels [H, W, C] or the bytes of an encoded file; a label is in 0..num_classes-1.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from ml_collections import ConfigDict

from trainlib import extension
from trainlib.data.order import record_order
from trainlib.errors import ConfigError
from vitattn.images.decode import Pixels, Rgb

SPLITS = ("train", "holdout", "test")

# The seed of every fixed division of a data set into parts. It is part of their definition, not a
# setting.
SPLIT_SEED = 19_04_09925


class Example(NamedTuple):
    """One record: uint8 pixels [H, W, C], an encoded file or an open picture, and its class."""

    image: Pixels
    label: int


class Labelled(Protocol):
    """What every data set with classes has, whatever its records are."""

    num_classes: int
    class_names: tuple[str, ...]


class Records(Protocol):
    """What reading in batches asks of a data set, whatever its records are."""

    in_memory: bool

    def __len__(self) -> int: ...

    def describe(self, record: int) -> str:
        """Names the file and position of the record, for messages."""
        ...


class DataSet(Labelled, Records, Protocol):
    """A data set with random access to examples of some kind.

    It pickles to worker processes, so files are opened on first use.

    Attributes:
      num_classes: labels are below it.
      class_names: one name for each label.
      digest: changes when the number, names or sizes of the records change; checkpoints hold it.
      in_memory: whether the whole set is in memory, so that reading it costs nothing.
      left_out: lines that report what lies beside the records and is not read.
      mean: of the training pixels in RGB, in units of the full range.
      std: standard deviation of the same.
    """

    digest: str
    left_out: tuple[str, ...]
    mean: Rgb
    std: Rgb

    def __getitem__(self, record: int) -> Any:
        """Reads one record; raises `vitattn.images.files.UnreadableRecord`."""
        ...


class Source(DataSet, Protocol):
    """A data set of images with one class each."""

    def __getitem__(self, record: int) -> Example: ...


class Checked(NamedTuple):
    """What was found in a data set: lines on it, and the reasons for which it cannot be used."""

    lines: list[str]
    refused: list[str]


AnySource = TypeVar("AnySource", bound=DataSet)


@dataclasses.dataclass(frozen=True)
class Kind(Generic[AnySource]):
    """A kind of data set: what the name before the colon of `data.source` stands for.

    Attributes:
      usage: the values of `data.source` that ask for it, such as "folder:PATH", for help and
        messages.
      make: opens a split: `(config, split) -> Source`, with the `data` section of a configuration.
      mean: of the training pixels in RGB, in units of the full range. It is known without the data.
      std: standard deviation of the same.
      class_names: `data.source` -> the names of its classes in the order of their labels; () where
        only the data can tell.
    """

    usage: tuple[str, ...]
    make: Callable[[ConfigDict, str], AnySource]
    mean: Rgb
    std: Rgb
    class_names: Callable[[str], tuple[str, ...]]

    @property
    def takes_argument(self) -> bool:
        """Whether something may follow a colon in `data.source`."""
        return any(":" in form for form in self.usage)


def argument_of(source: str) -> str:
    """Returns what follows the name and a colon in `data.source`; "" without any.

    `folder:PATH` has the argument PATH, `module:MODULE:NAME:ARGUMENT` has ARGUMENT.
    """
    return extension.split(source)[1]


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


class Subset(Generic[AnySource]):
    """The chosen records of another source, in ascending order."""

    def __init__(self, parent: AnySource, records: np.ndarray, name: str):
        self.parent = parent
        self.records = np.sort(records)
        self.num_classes, self.class_names = parent.num_classes, parent.class_names
        self.in_memory, self.mean, self.std = parent.in_memory, parent.mean, parent.std
        self.left_out = parent.left_out
        self.digest = short_digest(parent.digest, name, self.records.tobytes())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, record: int) -> Any:
        return self.parent[int(self.records[record])]

    def describe(self, record: int) -> str:
        return self.parent.describe(int(self.records[record]))


def hold_out(
    train: AnySource,
    fraction: float,
    split: str,
    subset: Callable[[AnySource, np.ndarray, str], AnySource] = Subset,
) -> AnySource:
    """Divides a training set: `holdout` is a fixed random `fraction` of it, `train` is the rest.

    Args:
      train: the whole of it.
      fraction: in [0, 1).
      split: "train" or "holdout".
      subset: makes the part, of the source, its records and a name; sources that offer more than
        `Source` does have their own.

    Raises:
      ConfigError: no such fraction, or an empty `holdout`.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"data.holdout={fraction} is not a fraction: use 0 <= holdout < 1.")
    size = round(fraction * len(train))
    if split == "holdout" and size == 0:
        raise ConfigError(
            "the split 'holdout' is empty: set the part of the training set to hold out, "
            "for example --config.data.holdout=0.04."
        )
    if not size:
        return train
    order = record_order(SPLIT_SEED, 0, len(train))
    records = order[:size] if split == "holdout" else order[size:]
    return subset(train, records, f"{split} {fraction}")


def short_digest(*parts: object) -> str:
    """Returns 16 hexadecimal digits that change when any part does."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else encoded(str(part)))
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def encoded(name: str) -> bytes:
    """Returns the bytes of a text or of a file name, which need not be valid UTF-8."""
    return name.encode("utf-8", "surrogateescape")
