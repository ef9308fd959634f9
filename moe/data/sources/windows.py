"""Running text in windows of n tokens, each of which becomes a row of what the objective asks."""

from __future__ import annotations

import functools

import numpy as np

from moe.data.cache.read import Cache, Damage
from moe.data.denoisers.denoiser import Denoiser, Example, Key
from moe.data.sources.cached import EVAL_SEED, CachedSource
from moe.data.sources.source import Record
from moe.text.vocabulary import Vocabulary

# Separates where an epoch's windows begin from the other random streams of a seed.
_SHIFT_ROLE = 2


class Windows(CachedSource):
    """Running text, joined end to end and cut into windows of n tokens; a record is one
    window.

    In training the cuts lie elsewhere in each epoch and the last window goes on at the beginning;
    in evaluation they start at 0 and the last window is short.
    """

    def __init__(
        self,
        name: str,
        cache: Cache,
        vocabulary: Vocabulary,
        denoiser: Denoiser | None,
        tokens: int,
        stream: int = 0,
    ):
        super().__init__(name, cache, vocabulary, (denoiser, tokens), stream)
        self.denoiser = denoiser
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
            seed = self._own_seed(seed)
            keys = [(seed, int(e), r) for r, e in zip(numbers, epochs.tolist(), strict=True)]
            texts = [self._text(self._start(r, e, s), True) for s, e, r in keys]
        good = [i for i, text in enumerate(texts) if not isinstance(text, Damage)]
        read: list[Record] = [text if isinstance(text, Damage) else [] for text in texts]
        whole = [text for text in texts if not isinstance(text, Damage)]
        examples = self._examples(whole, [keys[i] for i in good])
        for i, of_window in zip(good, examples, strict=True):
            read[i] = of_window
        return read

    def _examples(self, texts: list[np.ndarray], keys: list[Key]) -> list[list[Example]]:
        assert self.denoiser is not None
        return self.denoiser.examples(texts, keys)

    def target_counts(self) -> np.ndarray:
        assert self.denoiser is not None
        return self.denoiser.target_counts(self.counts(), np.asarray([self.window]))


@functools.lru_cache(maxsize=64)
def _shift(seed: int, epoch: int) -> int:
    bits = np.random.Philox(np.random.SeedSequence((_SHIFT_ROLE, seed, epoch)))
    return int(bits.random_raw())
