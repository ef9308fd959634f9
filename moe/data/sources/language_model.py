"""Running text for a decoder alone, each document with an end of sequence."""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np

from moe.data.cache.read import Cache, Damage
from moe.data.denoisers.denoiser import Example, Key
from moe.data.sources.windows import Windows
from moe.text.vocabulary import EOS, Vocabulary


class LanguageModel(Windows):
    """Running text for a decoder alone: windows as they are, as targets without inputs, of a stream
    in which an end of sequence (EOS) follows each document ("full_lm" of T5).
    """

    ends = False

    def __init__(self, name: str, cache: Cache, vocabulary: Vocabulary, tokens: int):
        documents = np.cumsum([0, *(shard.documents for shard in cache.shards)])
        # Of each shard, the first document and its position in the stream.
        self.firsts, self.positions = documents, cache.starts + documents
        self._index: list[np.ndarray] | None = None
        cache.check_index("ends")  # once, before there are worker processes
        super().__init__(name, cache, vocabulary, None, tokens)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}  # maps of files would travel as their content

    def _total(self) -> int:
        return int(self.positions[-1])

    def _ends(self, shard: int) -> np.ndarray:
        if self._index is None:
            self._index = self.cache.array("ends")
        return self._index[shard]

    def _before(self, position: int) -> int:
        """Returns how many documents have their EOS before a position of the stream."""
        shard = (
            min(int(np.searchsorted(self.positions, position, "right")), len(self.positions) - 1)
            - 1
        )
        ends, offset = self._ends(shard), position - int(self.positions[shard])
        inside = bisect.bisect_left(range(len(ends)), offset, key=lambda i: int(ends[i]) + i)
        return int(self.firsts[shard]) + inside

    def _end(self, document: int) -> int:
        """Returns where the EOS of a document stands in the stream."""
        shard = int(np.searchsorted(self.firsts, document, "right")) - 1
        number = document - int(self.firsts[shard])
        return int(self.positions[shard]) + int(self._ends(shard)[number]) + number

    def _ids(self, start: int, stop: int) -> np.ndarray | Damage:
        first, last = self._before(start), self._before(stop)
        text: np.ndarray | Damage = np.zeros(0, np.int32)
        if stop - last > start - first:
            text = super()._ids(start - first, stop - last)
        if isinstance(text, Damage):
            return text
        # `insert` counts positions before anything is inserted.
        positions = [self._end(d) - start - (d - first) for d in range(first, last)]
        return np.insert(text, positions, EOS)

    def _examples(self, texts: list[np.ndarray], keys: list[Key]) -> list[list[Example]]:
        return [[(text[:0], text)] for text in texts]

    def target_counts(self) -> np.ndarray:
        counts = self.counts()
        counts[EOS] += self.cache.documents
        return counts
