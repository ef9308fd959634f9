"""Which held-out examples are shown, and how pieces of their text are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from moe.data import check_vocabulary, make_source
from moe.data.cache.read import Damage
from moe.data.sources.source import Source
from moe.text.vocabulary import Vocabulary
from trainlib.errors import DataError, shown
from trainlib.report.samples import spread


class HeldOut(NamedTuple):
    """A held-out example: where it is from, and its ids without EOS."""

    title: str
    inputs: np.ndarray
    targets: np.ndarray


def open_held_out(config: ConfigDict, vocab_size: int) -> Source:
    """The held-out split of a run.

    Raises:
      ConfigError: nothing is held out.
      DataError: the data is not there, or has more ids than the model.
    """
    source = make_source(config.data, "holdout")
    check_vocabulary(source.vocabulary, vocab_size)
    return source


def examples(source: Source, count: int) -> list[HeldOut]:
    """The first example of `count` records at equal distances; of a mixture, of each part about as
    many.

    Raises:
      DataError: no record can be read.
    """
    parts = [part for part, _ in source.parts()]
    found = []
    for number, part in enumerate(parts):
        share = (count + len(parts) - 1 - number) // len(parts)
        records = np.asarray(spread(share, len(part)), np.int64)
        for record, read in zip(records.tolist(), part.read(records, None, 0), strict=True):
            if read and not isinstance(read, Damage):
                found.append(HeldOut(f"{shown(part.name)}, record {record:,}", *read[0]))
    if count and not found:
        raise DataError("None of the held-out records that were to be shown can be read.")
    return found


def about(source: Source, config: ConfigDict, shown_records: int) -> str:
    """What the examples are a part of, as the beginning of a sentence."""
    return (
        f"{shown_records} of the {len(source):,} held-out records of {shown(config.data.source)}, "
        "at equal distances"
    )


def piece(vocabulary: Vocabulary, ids: np.ndarray) -> str:
    """The text of a few ids, with the blanks at its ends and its line ends made visible."""
    text = vocabulary.decode(ids)
    inner = text.strip(" ")
    left = len(text) - len(text.lstrip(" ")) if inner else len(text)
    right = len(text) - len(inner) - left
    return f"{_blanks(left)}{inner}{_blanks(right)}".replace("\n", "↵")


def _blanks(count: int) -> str:
    return "␣" * count if count <= 8 else f"␣ x {count}"
