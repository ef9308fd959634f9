"""What the sources that read one token cache share."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from moe.data.cache.read import Cache, Damage, DamagedRecord
from moe.data.sources.shuffle import locate
from moe.text.vocabulary import Vocabulary

# Fixed by definition, not a setting: the noise of evaluation.
EVAL_SEED = 22_02_08906


class CachedSource:
    """A source of one cache; which records it has is up to what derives from it."""

    ends = True
    notes: tuple[str, ...] = ()

    def __init__(self, name: str, cache: Cache, vocabulary: Vocabulary, settings: Any):
        self.name, self.cache, self.vocabulary = name, cache, vocabulary
        self.in_memory = cache.in_memory
        content = repr((cache.digest, vocabulary.digest, settings))
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        raise NotImplementedError

    def locate(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return locate(positions, seed, len(self))

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
