"""Several sources at fixed rates."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from moe.data.sources.source import Record, Source
from trainlib.errors import ConfigError, DataError

_MIX_ROLE = 3  # separates the order of a mixture from the other random streams of a seed

# Mixture rates are exact in every cycle of so many records.
_CYCLE = 1 << 16


class Mixture:
    """Several sources at fixed rates; each is read through in its own epochs.

    Rates are exact in every 65,536 records of training, whose order over the sources is random.
    Evaluation reads each source once, one after the other; a run evaluates its `parts`.
    """

    def __init__(self, name: str, sources: Sequence[Source], rates: Sequence[float]):
        """Raises ConfigError for rates that are not above 0, DataError for other vocabularies."""
        if min(rates) <= 0:
            raise ConfigError(f"{name}: the rates {tuple(rates)} must all be above 0.")
        self.name, self.sources = name, list(sources)
        self.rates = np.asarray(rates, np.float64) / np.sum(rates)
        self.vocabulary = sources[0].vocabulary
        for source in sources:
            if source.vocabulary.digest != self.vocabulary.digest:
                raise DataError(
                    f"{name}: {source.name} and {sources[0].name} have different vocabularies "
                    f"({source.vocabulary.name}, {self.vocabulary.name}); one model reads one."
                )
        self.ends = sources[0].ends
        self.notes = tuple(note for source in sources for note in source.notes)
        self.in_memory = all(source.in_memory for source in sources)
        parts = [(s.digest, rate) for s, rate in zip(sources, self.rates.tolist(), strict=True)]
        self.digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        self._starts = np.cumsum([0, *(len(source) for source in sources)]).tolist()
        self._each = tuple(_whole_counts(self.rates).tolist())

    def __len__(self) -> int:
        return self._starts[-1]

    def locate(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        cycles, offsets = np.divmod(positions, _CYCLE)
        owners, numbers = np.empty_like(positions), np.empty_like(positions)
        for cycle in np.unique(cycles):
            here = cycles == cycle
            cycle_owners, turns = _cycle(seed, int(cycle), self._each)
            owners[here], numbers[here] = cycle_owners[offsets[here]], turns[offsets[here]]
        epochs, records = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(owners).tolist():
            here = owners == number
            before = cycles[here] * self._each[number]
            epochs[here], of_source = self.sources[number].locate(before + numbers[here], seed)
            records[here] = of_source + self._starts[number]
        return epochs, records

    def read(self, records: np.ndarray, epochs: np.ndarray | None, seed: int) -> list[Record]:
        read: list[Record] = [[] for _ in records]
        owners = np.searchsorted(self._starts, records, side="right") - 1
        for number in np.unique(owners).tolist():
            here = np.flatnonzero(owners == number)
            of_epochs = None if epochs is None else epochs[here]
            of_source = records[here] - self._starts[number]
            from_source = self.sources[number].read(of_source, of_epochs, seed)
            for i, record in zip(here.tolist(), from_source, strict=True):
                read[i] = record
        return read

    def counts(self) -> np.ndarray:
        return _weighted([source.counts() for source in self.sources], self.rates)

    def target_counts(self) -> np.ndarray:
        return _weighted([source.target_counts() for source in self.sources], self.rates)

    def parts(self) -> list[tuple[Source, float]]:
        return list(zip(self.sources, self.rates.tolist(), strict=True))


def _weighted(counts: list[np.ndarray], rates: np.ndarray) -> np.ndarray:
    return np.sum([c / c.sum() * r for c, r in zip(counts, rates, strict=True)], axis=0)


def _whole_counts(rates: np.ndarray) -> np.ndarray:
    """Returns int64: records of a cycle for each rate, at least 1, in all _CYCLE (largest
    remainders)."""
    exact = rates * _CYCLE
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    for i in np.argsort(counts - exact, kind="stable").tolist() * 2:
        missing = _CYCLE - int(counts.sum())
        if missing > 0:
            counts[i] += 1
    counts[np.argmax(counts)] += _CYCLE - int(counts.sum())
    return counts


@functools.lru_cache(maxsize=4)
def _cycle(seed: int, cycle: int, each: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns int64 [_CYCLE] twice: the source of each record, and which of its records of the
    cycle it is."""
    bits = np.random.Philox(np.random.SeedSequence((_MIX_ROLE, seed, cycle)))
    order = np.argsort(bits.random_raw(_CYCLE), kind="stable")
    owners = np.repeat(np.arange(len(each)), each)[order]
    turns = np.empty(_CYCLE, np.int64)
    for number, count in enumerate(each):
        turns[owners == number] = np.arange(count)
    return owners, turns
