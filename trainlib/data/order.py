"""The order of records: which records a batch holds, what is drawn for each, which part a host
reads, and the position that a checkpoint saves.

B global batch, H hosts, N records, K repeats of a record in a batch (one, unless asked for).

Everything a batch contains is a pure function of (seed, batch number), so a resumed run, a run on
another number of hosts and a run with another number of worker processes all read the same records:
batch b holds the global positions [b*B, (b+1)*B), position p is record `record_order(seed, p // N,
N)[p % N]` (or what the shuffle of a source of its own gives), and host h takes the part [h*B/H,
(h+1)*B/H) of every batch. The position to save in a checkpoint is therefore the number of the next
batch. With K repeats a batch holds B/K records, those of the positions [b*B/K, (b+1)*B/K).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from trainlib.errors import ConfigError

# Roles keep the random streams of one seed apart: the order of records, what is drawn for each
# record, and how records of a batch are mixed.
_ORDER_ROLE = 0
RECORD = 1
MIXING = 2


def generator(seed: int, epoch: int, record: int, role: int = RECORD) -> np.random.Generator:
    """Returns the random generator that belongs to one record in one epoch, for one role."""
    entropy = np.random.SeedSequence((role, seed, epoch, record))
    return np.random.Generator(np.random.Philox(entropy))


@functools.lru_cache(maxsize=4)
def record_order(seed: int, epoch: int, records: int) -> np.ndarray:
    """Returns int64 [N]: the order in which `epoch` reads the records 0..N-1.

    It sorts raw Philox words: NumPy promises those never to change, but not what
    `Generator.permutation` returns.
    """
    bits = np.random.Philox(np.random.SeedSequence((_ORDER_ROLE, seed, epoch)))
    order = np.argsort(bits.random_raw(records), kind="stable")
    order.setflags(write=False)
    return order


def records_at(positions: np.ndarray, seed: int, records: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epochs, record numbers), both int64 like `positions`, for global positions in the
    shuffled stream."""
    epochs, offsets = np.divmod(positions, records)
    numbers = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        numbers[here] = record_order(seed, int(epoch), records)[offsets[here]]
    return epochs, numbers


def repeated_records(
    batch: int, rows: np.ndarray, batch_size: int, repeats: int, seed: int, records: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (draws, record numbers), both int64 like `rows`, for rows of a global batch that
    holds each of its B/K records K times.

    A draw tells the readings of a record apart: epoch * K + the number of the repeat, which without
    repeats is the epoch. Rows k*B/K to (k+1)*B/K are repeat k. Each begins one record later than
    the one before, so that a record has another neighbour there.

    Args:
      batch: b.
      rows: in 0..B-1.
      batch_size: B, a multiple of K.
      repeats: K.
      seed: of the order.
      records: N.
    """
    distinct = batch_size // repeats
    repeat, row = np.divmod(rows, distinct)
    epochs, numbers = records_at(batch * distinct + (row + repeat) % distinct, seed, records)
    return epochs * repeats + repeat, numbers


def host_slice(batch_size: int, process_index: int, process_count: int) -> tuple[int, int]:
    """Returns [start, stop): the part of each global batch that one host reads.

    Raises:
      ConfigError: the batch does not divide over the hosts, or there is no such host.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"batch_size={batch_size} does not divide over {process_count} hosts: every host reads "
            f"the same number of rows. Use a multiple of {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index={process_index} is outside 0..{process_count - 1}.")
    share = batch_size // process_count
    return process_index * share, (process_index + 1) * share


def data_position(next_batch: int, batch_size: int, seed: int, records: int, digest: str) -> dict:
    """Returns what a checkpoint saves: the next batch, and what the meaning of that number depends
    on."""
    return {
        "next_batch": next_batch,
        "batch_size": batch_size,
        "seed": seed,
        "records": records,
        "digest": digest,
    }


def split_facts(**splits: Any) -> dict[str, Any]:
    """What all processes must see of each split (it has a length and a digest): label -> value."""
    lengths = {f"records of the {name} split": len(split) for name, split in splits.items()}
    return lengths | {f"digest of the {name} split": s.digest for name, s in splits.items()}


def position_changes(saved: dict, now: dict) -> list[str]:
    """Returns one line for each thing that makes a resumed run read other records than an unbroken
    one would."""
    meaning = {
        "batch_size": "the batch size",
        "seed": "the data seed",
        "records": "the number of records",
        "digest": "the data set (names and sizes)",
    }
    return [
        f"{meaning[key]} was {saved[key]} when the checkpoint was written and is {now[key]} now"
        for key in meaning
        if key in saved and saved[key] != now[key]
    ]
