"""What a reader of documents is, and a kind of data set that has one.

A reader cuts its documents into shards, so that preparation can go on after a stop and run in
several processes; which documents a shard holds depends on the source alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ml_collections import ConfigDict

from moe.text.vocabulary import Vocabulary


class Document(NamedTuple):
    """One document, or why it cannot be used."""

    where: str  # file and offset, for messages
    text: dict[str, Any]  # feature -> text, or ids when the source has tokenised already
    unusable: str = ""


class Reader(Protocol):
    """A source of documents; it pickles to worker processes."""

    name: str

    # "targets" alone is running text; with "inputs" each document is a pair.
    @property
    def features(self) -> tuple[str, ...]: ...

    # About how much there is; decides the number of shards and whether it is prepared at first use.
    @property
    def size_bytes(self) -> int: ...

    @property
    def most_shards(self) -> int: ...

    # One line for each kind of file that lies there and is not read.
    @property
    def passed_over(self) -> Sequence[str]: ...

    def fingerprint(self) -> str | None:
        """Returns what changes when the source does, or None when it is not here."""
        ...

    def documents(self, shard: int, shards: int) -> Iterator[Document]: ...


@runtime_checkable
class ReadsFiles(Protocol):
    """A reader of files that may lie anywhere; digests of large ones are noted in a file.

    Attributes:
      notes: that file; None reads everything at every start, see `fingerprint.files_digest`.
    """

    notes: Path | None


def _nothing(config: ConfigDict, source: str, split: str) -> list[Any]:
    return []


def _always(config: ConfigDict) -> bool:
    return True


def by_share(config: ConfigDict) -> bool:
    """For data sets without a held-out part of their own: whether `data.holdout` keeps one back."""
    return config.holdout > 0


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of text data set, and all that the catalog has to know of it.

    A source is what `data.source` names: the name of its kind, or that with an argument after a
    colon; of a mixture, one of its parts. Functions take the `data` section of a configuration, a
    source and a split, "train" or "holdout".

    Attributes:
      usage: the values of `data.source` that ask for it, as help and messages write them.
      make: also takes the vocabulary; makes the reader, which opens nothing yet.
      deciding: what decides the content of its token cache beside source, split and vocabulary. The
        name of the cache is a digest of it, so that its order and its types have to stay.
      parts: the sources that one value of `data.source` stands for, where it stands for several.
      holds_out: takes the `data` section; whether a part of it is held out of training.
      is_path: the argument is the path of files that may be relative.
      at_first_use: it is tokenised when a run asks for it, however large it is.
      most_examples: of each part, so many examples count for its share in training; None: rates
        are given, not counted.
    """

    usage: str
    make: Callable[[ConfigDict, str, str, Vocabulary], Reader]
    deciding: Callable[[ConfigDict, str, str], list[Any]] = _nothing
    parts: Callable[[ConfigDict, str], list[str]] | None = None
    holds_out: Callable[[ConfigDict], bool] = _always
    is_path: bool = False
    at_first_use: bool = False
    most_examples: int | None = None

    @property
    def takes_argument(self) -> bool:
        """Whether something has to follow the name and a colon."""
        return ":" in self.usage


def held_out(key: str, fraction: float) -> bool:
    """Whether the document belongs to the held-out part: a fixed property of its key."""
    return draw(key) < fraction * 2**64


def draw(key: str) -> int:
    """A random number of 64 bits that is a fixed property of a key."""
    return int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:8])
