"""The order of training records, for sources whose order does not fit memory.

N records. C4 has 3e8: a list of their order would take 2.5 GB in each worker process and tens of
seconds an epoch. So record p of an epoch is computed from p by a keyed bijection of 0..N-1: a
Feistel network over the next even power of two, walked until it falls below N (Black and Rogaway
2002, "Ciphers with arbitrary finite domains", methods of sections 3 and 4).
"""

from __future__ import annotations

import functools

import numpy as np

# Separates the keys of orders from the other random streams of a seed.
_ORDER_ROLE = 4
_ROUNDS = 6

# An odd multiplier with well mixed bits: 2**64 divided by the golden ratio.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@functools.lru_cache(maxsize=256)
def _keys(seed: int, epoch: int) -> np.ndarray:
    bits = np.random.Philox(np.random.SeedSequence((_ORDER_ROLE, seed, epoch)))
    return bits.random_raw(_ROUNDS)


def _feistel(values: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    """A bijection of 0..4**half - 1; `values` uint64."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        mixed = (right ^ key) * _MULTIPLIER
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIER
        left, right = right, left ^ (mixed >> np.uint64(64 - half))
    return (left << shift) | right


def shuffled(offsets: np.ndarray, seed: int, epoch: int, records: int) -> np.ndarray:
    """Returns int64, the records that stand at `offsets` (0..N-1) of the epoch's order.

    Over all offsets it gives each record once; a value depends on nothing but the arguments.
    """
    half = max(1, ((records - 1).bit_length() + 1) // 2)
    keys = _keys(seed, epoch)
    values = _feistel(offsets.astype(np.uint64), keys, half)
    outside = np.flatnonzero(values >= records)
    while len(outside):
        values[outside] = _feistel(values[outside], keys, half)
        outside = outside[values[outside] >= records]
    return values.astype(np.int64)


def locate(positions: np.ndarray, seed: int, records: int) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, records), int64 like `positions`, of positions in the endless training stream."""
    epochs, offsets = np.divmod(positions, records)
    located = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        located[here] = shuffled(offsets[here], seed, int(epoch), records)
    return epochs, located
