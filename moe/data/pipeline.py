"""From a source to batches: training batches without end, evaluation batches once and in order.

B global batch, b the part of this host. A batch holds the arrays of `moe.data.sources.packing` and
  index  int64 [b]  record number in the source, -1 for padding
A record that cannot be read stays, as padding with decoder_weights 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moe.data.cache.read import Damage
from moe.data.sources.packing import fill_batch
from moe.data.sources.source import Source
from trainlib.data.bad_records import BadRecords
from trainlib.data.batches import Batches, worker_count
from trainlib.data.order import host_slice
from trainlib.errors import ConfigError

# Records that one worker reads at a time: enough that handing them over costs little beside reading
# them.
_PIECE_RECORDS = 64

_Lengths = tuple[int, int]


def train_batches(
    source: Source,
    config: ConfigDict,
    batch_size: int,
    seed: int,
    start_batch: int,
    process_index: int,
    process_count: int,
) -> Batches:
    """Returns this host's training batches from number `start_batch` on, without end.

    Args:
      source: the training split.
      config: the `data` part of a configuration.
      batch_size: B, over all hosts.
      seed: decides the order, the cuts and the noise.
      start_batch: number of the first global batch, the `next_batch` of a checkpoint.
      process_index: this host, in 0..process_count-1.
      process_count: hosts that share each global batch.

    Raises:
      ConfigError: a setting cannot work.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed} is negative: use 0 or more.")
    start, stop = host_slice(batch_size, process_index, process_count)
    lengths = config.encoder_length, config.decoder_length
    make = functools.partial(_train_piece, source, lengths, seed, batch_size, start, stop)
    return _batches(make, source, config, stop - start, start_batch, None)


def eval_batches(
    source: Source, config: ConfigDict, batch_size: int, process_index: int, process_count: int
) -> Batches:
    """Returns this host's evaluation batches: each record once over all hosts, in order, with the
    same noise every time.

    Every host gets the same number of batches; what follows the last record is padding, index -1.
    """
    start, stop = host_slice(batch_size, process_index, process_count)
    lengths = config.encoder_length, config.decoder_length
    make = functools.partial(_eval_piece, source, lengths, batch_size, start, stop)
    return _batches(make, source, config, stop - start, 0, -(-len(source) // batch_size))


def _batches(
    make: Callable[..., dict[str, Any]],
    source: Source,
    config: ConfigDict,
    size: int,
    start: int,
    stop: int | None,
) -> Batches:
    return Batches(
        make,
        pieces=-(-size // _PIECE_RECORDS),
        start=start,
        stop=stop,
        workers=worker_count(config.workers, source.in_memory),
        prefetch=config.prefetch,
        # By the record of the cache, which is the same whatever batches and epochs meet it.
        bad=BadRecords(len(source), config.max_bad_fraction, str),
    )


def _piece_records(start: int, stop: int, piece: int) -> np.ndarray:
    first = start + piece * _PIECE_RECORDS
    return np.arange(first, min(first + _PIECE_RECORDS, stop), dtype=np.int64)


def _train_piece(
    source: Source,
    lengths: _Lengths,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    batch: int,
    piece: int,
) -> dict[str, Any]:
    positions = batch * batch_size + _piece_records(start, stop, piece)
    epochs, records = source.locate(positions, seed)
    return _read(source, lengths, records, epochs, seed)


def _eval_piece(
    source: Source,
    lengths: _Lengths,
    batch_size: int,
    start: int,
    stop: int,
    batch: int,
    piece: int,
) -> dict[str, Any]:
    records = batch * batch_size + _piece_records(start, stop, piece)
    records = np.where(records < len(source), records, -1)
    return _read(source, lengths, records, None, 0)


def _read(
    source: Source, lengths: _Lengths, records: np.ndarray, epochs: np.ndarray | None, seed: int
) -> dict[str, Any]:
    present = records[records >= 0]  # only evaluation has others, at the end
    read = source.read(present, epochs, seed)
    bad = [record for record in read if isinstance(record, Damage)]
    examples = [[] if isinstance(record, Damage) else record for record in read]
    examples += [[] for _ in range(len(records) - len(present))]
    return {**fill_batch(examples, *lengths, source.ends), "index": records, "bad": bad}
