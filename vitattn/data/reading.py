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
from trainlib.data.batches import Batch, Batches, worker_count
from trainlib.data.order import host_slice, repeated_records
from trainlib.errors import ConfigError
from vitattn.data.source import Records
from vitattn.images.decode import BadImage
from vitattn.images.files import UnreadableRecord

# What one worker makes at a time: small enough that a first batch comes soon and many workers need
# little memory, large enough that handing it over costs nothing beside decoding. At 224 pixels the
# number decides (19 MB), at 640 pixels the bytes (4 examples).
_PIECE = 32
_PIECE_BYTES = 20 * 2**20


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

    def unwritten(self, size: int) -> dict[str, np.ndarray]:
        """Returns such arrays for `fill`, with arbitrary contents where it writes all of them: not
        to write the memory twice is a twentieth of the time of an image."""
        ...

    def fill(self, arrays: dict[str, np.ndarray], number: int, record: int, epoch: int) -> None:
        """Writes one record, as it is in this epoch, to example `number` of the arrays. Where a
        batch repeats its records, each repeat counts as an epoch.

        Raises:
          BadImage, UnreadableRecord: it cannot be read; nothing was written.
        """
        ...


class Mixing(Protocol):
    """What becomes of pairs of examples, rows 2i and 2i + 1 of a batch. It pickles to workers."""

    def apply(
        self,
        arrays: dict[str, np.ndarray],
        weights: np.ndarray,
        records: np.ndarray,
        draws: np.ndarray,
    ) -> None:
        """Changes the arrays of a reader, and may add some, all of n examples.

        Args:
          arrays: those of the reader, filled.
          weights: float32 [n], 0 for bad records, which are blank.
          records: int64 [n].
          draws: int64 [n], their epochs, as `Reader.fill` gets them.
        """
        ...


def train_batches(
    reader: Reader,
    config: ConfigDict,
    batch_size: int,
    start_batch: int,
    process_index: int,
    process_count: int,
    note: Callable[[Batch], object] = lambda batch: None,
    repeats: int = 1,
    mixing: Mixing | None = None,
) -> Batches:
    """Returns this host's training batches from number `start_batch` on, without end.

    Args:
      reader: of the training split.
      config: the `data` section of a configuration.
      batch_size: B, over all hosts.
      start_batch: number of the first global batch, the `next_batch` of a checkpoint.
      process_index: number of this host, in 0..process_count-1.
      process_count: hosts that share each global batch.
      note: called with each batch before it is returned.
      repeats: how often a batch holds each of its records; divides B.
      mixing: of pairs of examples; the part of a host is then even.

    Raises:
      ConfigError: a setting cannot work.
    """
    if reader.seed < 0:
        raise ConfigError(f"seed={reader.seed} is negative: use 0 or more.")
    start, stop = host_slice(batch_size, process_index, process_count)
    most = _piece_size(reader)
    if mixing is not None:
        most = max(2, most - most % 2)  # no pair lies in two pieces
    rows = functools.partial(_positions, start, stop, most)
    make_piece = functools.partial(_training_piece, reader, batch_size, rows, repeats, mixing)
    pieces = -(-(stop - start) // most)
    return _batches(make_piece, reader.source, config, pieces, start_batch, None, note)


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
    most = _piece_size(reader)
    make_piece = functools.partial(_evaluation_piece, reader, batch_size, start, stop, most)
    pieces = -(-(stop - start) // most)
    return _batches(make_piece, source, config, pieces, 0, -(-len(source) // batch_size))


def _batches(
    make_piece: Callable[[int, int], dict[str, Any]],
    source: Records,
    config: ConfigDict,
    pieces: int,
    start: int,
    stop: int | None,
    note: Callable[[Batch], object] = lambda batch: None,
) -> Batches:
    """Batches `start` to `stop` (None: no end) of so many pieces on this host."""
    return Batches(
        make_piece,
        pieces=pieces,
        start=start,
        stop=stop,
        workers=worker_count(config.workers, source.in_memory),
        prefetch=config.prefetch,
        bad=BadRecords(len(source), config.max_bad_fraction, source.describe),
        note=note,
    )


def _piece_size(reader: Reader) -> int:
    """Examples of a piece: 1 to `_PIECE`."""
    example = sum(array.nbytes for array in reader.blank(1).values())
    return max(1, min(_PIECE, _PIECE_BYTES // example))


def _positions(start: int, stop: int, most: int, piece: int) -> np.ndarray:
    """Returns the positions in the global batch, int64 [up to `most`], of a piece of the host's
    part [start, stop)."""
    first = start + piece * most
    return np.arange(first, min(first + most, stop), dtype=np.int64)


def _training_piece(
    reader: Reader,
    batch_size: int,
    rows: Callable[[int], np.ndarray],
    repeats: int,
    mixing: Mixing | None,
    batch: int,
    piece: int,
) -> dict[str, Any]:
    draws, records = repeated_records(
        batch, rows(piece), batch_size, repeats, reader.seed, len(reader.source)
    )
    return _read(reader, records, draws, mixing)


def _evaluation_piece(
    reader: Reader, batch_size: int, start: int, stop: int, most: int, batch: int, piece: int
) -> dict[str, Any]:
    records = batch * batch_size + _positions(start, stop, most, piece)
    records = np.where(records < len(reader.source), records, -1)
    return _read(reader, records, np.zeros_like(records))


def _read(
    reader: Reader, records: np.ndarray, epochs: np.ndarray, mixing: Mixing | None = None
) -> dict[str, Any]:
    """Reads records int [n] of epochs int [n]; a bad one stays blank and has weight 0."""
    arrays = reader.unwritten(len(records))
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
    if not weights.all():
        for name, blank in reader.blank(1).items():
            arrays[name][weights == 0] = blank
    if mixing is not None:
        mixing.apply(arrays, weights, records, epochs)
    return {**arrays, "weight": weights, "index": records, "bad": bad}
