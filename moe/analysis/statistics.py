"""How far the experts of tokens follow a property of theirs, against chance.

Letters: N tokens, R rows, V values of a property, E experts.

All entropies are in nats and of counts as they are. Of few tokens they come out too low, and so
they are always compared with a control of as many: the same tokens with the experts of their row
(sequence) dealt out anew. Intervals are of a bootstrap that draws whole rows, because the tokens of
a row depend on each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

SHUFFLES = 20
DRAWS = 200
_UNITS = 512  # rows, or groups of rows, that a bootstrap draws from
_SEED = 22_02_08906
_PRIOR = 500.0  # tokens, how far few counts are drawn to the average in `typical`
_NOTABLE, _LIFT = 3.0, 1.2  # standard errors, and share over that of all, of what is typical


@dataclasses.dataclass(frozen=True)
class Property:
    """A property of tokens that routing may follow.

    Attributes:
      name: as a report says it.
      codes: int [N], the number of each token's value; -1: it has none, and is not counted.
      names: of the values.
      of_rows: whether all tokens of a row have one value, as a language.
    """

    name: str
    codes: np.ndarray
    names: Sequence[str]
    of_rows: bool = False


def table(codes: np.ndarray, expert: np.ndarray, values: int, experts: int) -> np.ndarray:
    """int64 [V, E]: tokens of each value with each expert; -1 and E are not counted."""
    seen = (codes >= 0) & (expert < experts)
    pairs = codes[seen].astype(np.int64) * experts + expert[seen]
    return np.bincount(pairs, minlength=values * experts).reshape(values, experts)


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy of the shares along the last axis [.., E] -> [..]; 0 where there are none."""
    total = counts.sum(axis=-1, keepdims=True)
    shares = counts / np.where(total > 0, total, 1)
    return np.abs(np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=-1))


def conditional(counts: np.ndarray) -> float:
    """H(expert | value) of a table [V, E]."""
    sizes = counts.sum(axis=1)
    return float(np.sum(sizes * entropy(counts)) / max(sizes.sum(), 1))


class Control:
    """Deals the experts of tokens out anew.

    Args:
      rows: int [N], the row of each token, ascending.
      rng: of the draws.
    """

    def __init__(self, rows: np.ndarray, rng: np.random.Generator | None = None):
        rng = rng or np.random.default_rng(_SEED)
        self.rows = rows
        draws = (rng.random(len(rows)) for _ in range(SHUFFLES))
        self._within = [np.lexsort((draw, rows)) for draw in draws]
        count = int(rows[-1]) + 1 if len(rows) else 0
        self._between = [rng.permutation(count) for _ in range(SHUFFLES)]
        units = np.minimum(np.arange(count) * _UNITS // max(count, 1), _UNITS - 1)
        self._unit = (units if count > _UNITS else np.arange(count))[rows]
        self._units = min(count, _UNITS)
        equal = np.full(self._units, 1 / max(self._units, 1))
        self._weights = rng.multinomial(self._units, equal, size=DRAWS).astype(np.float32)

    def tables(self, prop: Property, expert: np.ndarray, experts: int) -> list[np.ndarray]:
        """The tables [V, E] of the control. Of a property of whole rows the rows change places,
        since dealing out within them would change nothing.
        """
        values = len(prop.names)
        if not prop.of_rows:
            return [table(prop.codes, expert[p], values, experts) for p in self._within]
        of_row = np.full(int(self.rows[-1]) + 1 if len(self.rows) else 0, -1)
        of_row[self.rows] = prop.codes
        return [table(of_row[p][self.rows], expert, values, experts) for p in self._between]

    def drawn(self, prop: Property, expert: np.ndarray, experts: int) -> np.ndarray:
        """float32 [DRAWS, V, E]: the tables of a bootstrap over rows."""
        values = len(prop.names)
        seen = (prop.codes >= 0) & (expert < experts)
        cell = (self._unit[seen] * values + prop.codes[seen]) * experts + expert[seen]
        size = self._units * values * experts
        by_unit = np.bincount(cell, minlength=size).reshape(self._units, values * experts)
        drawn = self._weights @ by_unit.astype(np.float32)
        return drawn.reshape(DRAWS, values, experts)


@dataclasses.dataclass(frozen=True)
class Explained:
    """How far experts follow a property.

    Attributes:
      name: of the property.
      values: how many values it has among these tokens.
      entropy: H(expert | value).
      control: the same of the control, mean.
      share: 1 - entropy / control: 1 where the value says the expert, about 0 by chance; None where
        there is nothing to explain, as with all tokens at one expert.
      noise: largest |share| of a single shuffle against the mean of all: less says nothing.
    """

    name: str
    values: int
    entropy: float
    control: float
    share: float | None
    noise: float


def explained(prop: Property, expert: np.ndarray, experts: int, control: Control) -> Explained:
    """Compares the experts int [N] of tokens with the control."""
    counts = table(prop.codes, expert, len(prop.names), experts)
    values = int((counts.sum(axis=1) > 0).sum())
    found = conditional(counts)
    chance = [conditional(c) for c in control.tables(prop, expert, experts)]
    mean = float(np.mean(chance))
    if mean < 1e-9:
        return Explained(prop.name, values, found, mean, None, 0.0)
    noise = float(np.abs(1 - np.asarray(chance) / mean).max())
    return Explained(prop.name, values, found, mean, 1 - found / mean, noise)


def ranked(all_explained: Sequence[Explained]) -> list[Explained]:
    """The best first; of those that explain as much, the one with the fewest values."""
    with_share = [e for e in all_explained if e.share is not None]
    best = sorted(with_share, key=lambda e: (-round(e.share or 0.0, 3), e.values))
    return best + [e for e in all_explained if e.share is None]


def exactly(prop: Property, expert: np.ndarray, experts: int) -> list[list[str]] | None:
    """The values of each expert where every value goes to one expert alone; else None."""
    counts = table(prop.codes, expert, len(prop.names), experts)
    present = counts.sum(axis=1) > 0
    if ((counts[present] > 0).sum(axis=1) != 1).any() or (counts.sum(axis=0) > 0).sum() < 2:
        return None
    owner = np.argmax(counts, axis=1)
    return [
        [prop.names[int(v)] for v in np.flatnonzero(present & (owner == e))] for e in range(experts)
    ]


@dataclasses.dataclass(frozen=True)
class Typical:
    """A value that an expert takes more often than others do.

    Attributes:
      name: of the value.
      count: tokens of it with this expert.
      lift: its share of this expert's tokens over its share of all.
    """

    name: str
    count: int
    lift: float


def typical(counts: np.ndarray, names: Sequence[str], most: int) -> list[list[Typical]]:
    """What is typical of each expert, most notable first: log-odds against all other experts with a
    prior of the overall frequencies (Monroe et al. 2008, "Fightin' Words", equations 16 and 22), of
    3 standard errors or more and a fifth more than its share of all.

    Args:
      counts: int [V, E].
      names: of the values.
      most: of an expert.
    """
    everything = counts.sum(axis=1)
    total = max(int(everything.sum()), 1)
    prior = np.maximum(everything * (_PRIOR / total), 1e-6)
    found = []
    for mine in counts.T:
        others = everything - mine
        a, b = mine + prior, others + prior
        own_rest, other_rest = mine.sum() + _PRIOR - a, others.sum() + _PRIOR - b
        odds = np.log(a / np.maximum(own_rest, 1e-9)) - np.log(b / np.maximum(other_rest, 1e-9))
        notable = odds / np.sqrt(1 / a + 1 / b)
        order = np.argsort(-notable, kind="stable")[:most]
        size = max(int(mine.sum()), 1)
        found.append(
            [
                Typical(
                    names[int(v)], int(mine[v]), float(mine[v] / size / (everything[v] / total))
                )
                for v in order
                if notable[v] >= _NOTABLE and mine[v] * total >= _LIFT * size * everything[v]
            ]
        )
    return found
