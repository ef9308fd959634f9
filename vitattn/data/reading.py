"""Batches of any kind of record: which records a batch holds, and how they are read in pieces.

A `Reader` says what one record becomes; a task has its own. B global batch, n examples of a piece.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from trainlib.data.bad_records import BadRecords
from trainlib.data.batches import Batches, worker_count
from trainlib.data.order import host_slice, records_at
from trainlib.errors import ConfigError
from vitattn.data.source import Records
from vitattn.images.decode import BadImage
from vitattn.images.files import UnreadableRecord

# Examples that one worker makes at a time: small enough that a first batch comes soon and many
# workers need little memory, large enough (19 MB at 224 pixels) that handing it over costs nothing
# beside decoding.
_PIECE = 32


class Reader(Protocol):
    """What a record becomes in a batch. It pickles to worker processes."""

    @property
    def source(self) -> Records:
        """The split that is read."""
        ...

    @property
    def seed(self) -> int:
        """Of the order and the augmentation."""
        ...

    def blank(self, size: int) -> dict[str, np.ndarray]:
        """Returns the arrays of `size` blank examples: name -> [size, ...]."""
        ...

    def fill(self, arrays: dict[str, np.ndarray], number: int, record: int, epoch: int) -> None:
        """Writes one record, as it is in this epoch, to example `number` of the arrays.

        Raises:
          BadImage, UnreadableRecord: it cannot be read; nothing was written.
        """
        ...


def train_batches(
    reader: Reader,
    config: ConfigDict,
    batch_size: int,
    start_batch: int,
    process_index: int,
    process_count: int,
) -> Batches:
    """Returns this host's training batches from number `start_batch` on, without end.

    Args:
      reader: of the training split.
      config: the `data` section of a configuration.
      batch_size: B, over all hosts.
      start_batch: number of the first global batch, the `next_batch` of a checkpoint.
      process_index: number of this host, in 0..process_count-1.
      process_count: hosts that share each global batch.

    Raises:
      ConfigError: a setting cannot work.
    """
    if reader.seed < 0:
        raise ConfigError(f"seed={reader.seed} is negative: use 0 or more.")
    start, stop = host_slice(batch_size, process_index, process_count)
    make_piece = functools.partial(_training_piece, reader, batch_size, start, stop)
    return _batches(make_piece, reader.source, config, stop - start, start_batch, None)


def eval_batches(
    reader: Reader, config: ConfigDict, batch_size: int, process_index: int, process_count: int
) -> Batches:
    """Returns this host's evaluation batches: each record once over all hosts, in order.

    Every host gets the same number of batches. Examples past the last record have weight 0 and
    index -1. For the arguments see `train_batches`.

    Raises:
      ConfigError: a setting cannot work.
    """
    source = reader.source
    start, stop = host_slice(batch_size, process_index, process_count)
    make_piece = functools.partial(_evaluation_piece, reader, batch_size, start, stop)
    return _batches(make_piece, source, config, stop - start, 0, -(-len(source) // batch_size))


def _batches(
    make_piece: Callable[[int, int], dict[str, Any]],
    source: Records,
    config: ConfigDict,
    size: int,
    start: int,
    stop: int | None,
) -> Batches:
    """Batches `start` to `stop` (None: no end) of `size` examples on this host, piece by piece."""
    return Batches(
        make_piece,
        pieces=-(-size // _PIECE),
        start=start,
        stop=stop,
        workers=worker_count(config.workers, source.in_memory),
        prefetch=config.prefetch,
        bad=BadRecords(len(source), config.max_bad_fraction, source.describe),
    )


def _positions(start: int, stop: int, piece: int) -> np.ndarray:
    """Returns the positions in the global batch, int64 [up to 32], of a piece of the host's part
    [start, stop)."""
    first = start + piece * _PIECE
    return np.arange(first, min(first + _PIECE, stop), dtype=np.int64)


def _training_piece(
    reader: Reader, batch_size: int, start: int, stop: int, batch: int, piece: int
) -> dict[str, Any]:
    positions = batch * batch_size + _positions(start, stop, piece)
    epochs, records = records_at(positions, reader.seed, len(reader.source))
    return _read(reader, records, epochs)


def _evaluation_piece(
    reader: Reader, batch_size: int, start: int, stop: int, batch: int, piece: int
) -> dict[str, Any]:
    records = batch * batch_size + _positions(start, stop, piece)
    records = np.where(records < len(reader.source), records, -1)
    return _read(reader, records, np.zeros_like(records))


def _read(reader: Reader, records: np.ndarray, epochs: np.ndarray) -> dict[str, Any]:
    """Reads records int [n] of epochs int [n]; a bad one stays blank and has weight 0."""
    arrays = reader.blank(len(records))
    weights = np.zeros(len(records), np.float32)
    bad: list[tuple[int, str]] = []
    for number, (record, epoch) in enumerate(zip(records.tolist(), epochs.tolist(), strict=True)):
        if record < 0:
            continue
        try:
            reader.fill(arrays, number, record, epoch)
            weights[number] = 1
        except (BadImage, UnreadableRecord) as error:
            bad.append((record, str(error)))
    return {**arrays, "weight": weights, "index": records, "bad": bad}
