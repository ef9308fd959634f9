"""The documentation that Python ships: the data set of a first run, with nothing to fetch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from moe.text.fingerprint import digest
from moe.text.reader import Document, Kind, held_out
from moe.text.vocabulary import Vocabulary

# Of the topics, by bytes about one in ten.
_HOLDOUT = 0.1


class Pydoc:
    """The documentation topics that Python itself ships, as `help("topics")` shows them.

    79 topics, 0.4 MB of English prose in Python 3.11. A paragraph that several topics share is
    stored once, so that the held-out topics share none with the training ones.
    """

    name, features, size_bytes, most_shards = "pydoc", ("targets",), 500_000, 1
    passed_over = ()

    def __init__(self, holdout: bool):
        self.holdout = holdout

    def _texts(self) -> dict[str, str]:
        from pydoc_data.topics import topics

        seen: set[str] = set()
        texts = {}
        for name in sorted(topics):
            paragraphs = []
            for paragraph in re.split(r"\n[ \t]*\n", topics[name]):
                words = " ".join(paragraph.split())
                if words and words not in seen:
                    seen.add(words)
                    paragraphs.append(paragraph.strip("\n"))
            if paragraphs and held_out(f"pydoc {name}", _HOLDOUT) == self.holdout:
                texts[name] = "\n\n".join(paragraphs) + "\n\n"
        return texts

    def fingerprint(self) -> str | None:
        return digest(self._texts())

    def documents(self, shard: int, shards: int) -> Iterator[Document]:
        for number, (name, text) in enumerate(self._texts().items()):
            if number % shards == shard:
                yield Document(f"pydoc topic {name}", {"targets": text})


def _make(config: ConfigDict, source: str, split: str, vocabulary: Vocabulary) -> Pydoc:
    return Pydoc(split == "holdout")


def _deciding(config: ConfigDict, source: str, split: str) -> list[Any]:
    return [Pydoc(split == "holdout").fingerprint()]  # another text in each version of Python


KIND = Kind("pydoc", _make, _deciding)
