"""Running text in windows of n tokens, whose spans are corrupted."""

from __future__ import annotations

import functools

import numpy as np

from moe.data.cache.read import Cache, Damage
from moe.data.sources.cached import EVAL_SEED, CachedSource
from moe.data.sources.packing import Example
from moe.data.sources.source import Record
from moe.data.sources.span_corruption import SpanCorruption, corrupt, corrupted_counts
from moe.text.vocabulary import Vocabulary

# Separates where an epoch's windows begin from the other random streams of a seed.
_SHIFT_ROLE = 2


class Windows(CachedSource):
    """Running text, joined end to end and cut into windows of n tokens; a record is one
    window, corrupted.

    In training the cuts lie elsewhere in each epoch and the last window goes on at the beginning;
    in evaluation they start at 0 and the last window is short.
    """

    def __init__(
        self,
        name: str,
        cache: Cache,
        vocabulary: Vocabulary,
        corruption: SpanCorruption | None,
        tokens: int,
    ):
        super().__init__(name, cache, vocabulary, (corruption, tokens))
        self.corruption = corruption
        self.total = self._total()
        self.window = min(tokens, self.total)

    def _total(self) -> int:
        """Returns how many tokens the stream has."""
        return self.cache.tokens

    def __len__(self) -> int:
        return -(-self.total // self.window)

    def _start(self, record: int, epoch: int, seed: int) -> int:
        return (_shift(seed, epoch) + record * self.window) % self.total

    def _text(self, start: int, wrap: bool) -> np.ndarray | Damage:
        text = self._ids(start, min(start + self.window, self.total))
        if wrap and not isinstance(text, Damage) and len(text) < self.window:
            more = self._ids(0, self.window - len(text))
            return more if isinstance(more, Damage) else np.concatenate([text, more])
        return text

    def read(self, records: np.ndarray, epochs: np.ndarray | None, seed: int) -> list[Record]:
        numbers = records.tolist()
        if epochs is None:
            keys = [(EVAL_SEED, 0, record) for record in numbers]
            texts = [self._text(record * self.window, False) for record in numbers]
        else:
            keys = [(seed, int(e), r) for r, e in zip(numbers, epochs.tolist(), strict=True)]
            texts = [self._text(self._start(r, e, s), True) for s, e, r in keys]
        good = [i for i, text in enumerate(texts) if not isinstance(text, Damage)]
        read: list[Record] = [text if isinstance(text, Damage) else [] for text in texts]
        whole = [text for text in texts if not isinstance(text, Damage)]
        examples = self._examples(whole, [keys[i] for i in good])
        for i, example in zip(good, examples, strict=True):
            read[i] = [example]
        return read

    def _examples(self, texts: list[np.ndarray], keys: list[tuple[int, int, int]]) -> list[Example]:
        assert self.corruption is not None
        return corrupt(self.corruption, texts, keys) if texts else []

    def target_counts(self) -> np.ndarray:
        assert self.corruption is not None
        return corrupted_counts(self.counts(), np.asarray([self.window]), self.corruption)


@functools.lru_cache(maxsize=64)
def _shift(seed: int, epoch: int) -> int:
    bits = np.random.Philox(np.random.SeedSequence((_SHIFT_ROLE, seed, epoch)))
    return int(bits.random_raw())
