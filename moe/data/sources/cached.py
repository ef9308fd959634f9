"""What the sources that read one token cache share."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np

from moe.data.cache.read import Cache, Damage, DamagedRecord
from moe.data.sources.shuffle import locate
from moe.text.vocabulary import Vocabulary

# Fixed by definition, not a setting: the noise of evaluation.
EVAL_SEED = 22_02_08906

# Separates the seeds of sources that read one cache from the other random streams of a seed.
_STREAM_ROLE = 5


class CachedSource:
    """A source of one cache; which records it has is up to what derives from it.

    Sources of one cache that train together have different `stream`s, so that they do not meet the
    same text at about the same time.
    """

    ends = True
    notes: tuple[str, ...] = ()

    def __init__(
        self, name: str, cache: Cache, vocabulary: Vocabulary, settings: Any, stream: int = 0
    ):
        self.stream = stream
        self.name, self.cache, self.vocabulary = name, cache, vocabulary
        self.in_memory = cache.in_memory
        content = repr((cache.digest, vocabulary.digest, settings))
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        raise NotImplementedError

    def locate(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return locate(positions, self._own_seed(seed), len(self))

    def _own_seed(self, seed: int) -> int:
        """The seed of this stream; of the first one, the run's."""
        return _stream_seed(seed, self.stream) if self.stream else seed

    def counts(self) -> np.ndarray:
        return self.cache.counts().astype(np.float64)

    def parts(self) -> list[tuple[Any, float]]:
        return [(self, 1.0)]

    def _ids(self, start: int, stop: int) -> np.ndarray | Damage:
        """Returns ids, or the first record of the cache that spoils them."""
        try:
            ids = self.cache.read(start, stop)
        except DamagedRecord as error:
            return error.damage
        if ids.max() < self.vocabulary.size:
            return ids
        first = int(np.argmax(ids >= self.vocabulary.size))
        why = f"has the id {ids[first]}, outside the vocabulary of {self.vocabulary.size}"
        return Damage(self.cache.describe(start + first), why)


@functools.lru_cache(maxsize=64)
def _stream_seed(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence((_STREAM_ROLE, seed, stream)).generate_state(1, np.uint64)[0])
