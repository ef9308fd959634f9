"""What the input pipelines of both families share: order, host shards, worker processes, bad
records, position.

B global batch, H hosts, N records, P pieces of one host's batch.

Everything a batch contains is a pure function of (seed, batch number), so a resumed run, a run on
another number of hosts and a run with another number of worker processes all read the same rows:
batch b holds the global positions [b*B, (b+1)*B), position p is record `record_order(seed, p // N,
N)[p % N]`, and host h takes the rows [h*B/H, (h+1)*B/H) of every batch. The position to keep in a
checkpoint is therefore the number of the next batch.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from trainlib.errors import ConfigError, DataError, PeerLost

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]

# Roles keep the random streams of one seed apart: the order of records, and what is drawn for each
# record.
_ORDER_ROLE = 0
_RECORD_ROLE = 1

# Where an endless stream of batches ends; no run gets there, and piece numbers still fit a signed
# 64-bit integer.
_ENDLESS = 2**40

# Arrays below this travel through the queue; larger ones through shared memory. Queue messages then
# stay below the size a pipe writes at once, so a worker that is killed cannot leave half a message
# for the reader to wait on.
_SHARED_MEMORY_BYTES = 1024

# How long a worker outlives a SIGTERM sent to the whole process group, so that the run can finish
# its last steps.
_TERM_GRACE_SECONDS = 60.0


def generator(seed: int, epoch: int, record: int) -> np.random.Generator:
    """Returns the random generator that belongs to one record in one epoch."""
    entropy = np.random.SeedSequence((_RECORD_ROLE, seed, epoch, record))
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


def host_rows(batch_size: int, host_index: int, host_count: int) -> tuple[int, int]:
    """Returns [start, stop): the rows of each global batch that one host reads.

    Raises:
      ConfigError: the batch does not divide over the hosts, or there is no such host.
    """
    if batch_size < 1 or batch_size % host_count:
        raise ConfigError(
            f"batch_size={batch_size} does not divide over {host_count} hosts: every host reads "
            f"the same number of rows. Use a multiple of {host_count}."
        )
    if not 0 <= host_index < host_count:
        raise ConfigError(f"host_index={host_index} is outside 0..{host_count - 1}.")
    rows = batch_size // host_count
    return host_index * rows, (host_index + 1) * rows


def data_position(next_batch: int, batch_size: int, seed: int, records: int, digest: str) -> dict:
    """Returns what a checkpoint keeps: the next batch, and what the meaning of that number depends
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


class BadRecords:
    """Counts and names records that could not be read, and stops the run when they are too many.

    Records are counted once, however many epochs meet them, against the records seen so far (at
    most all N). The run stops when the count exceeds `max_fraction` of the records seen; a few are
    let through whatever the fraction, so that one bad file early in a run is not "100 % of what was
    read": 5, or one in twenty of a smaller set. With `max_fraction=0` the first one stops the run.
    """

    def __init__(self, records: int, max_fraction: float, describe: Callable[[Any], str]):
        self._records = records
        self._max_fraction = max_fraction
        self._describe = describe
        self._known: dict[Hashable, tuple[str, str]] = {}
        self._rows = 0

    @property
    def found(self) -> list[tuple[str, str]]:
        """(where, why) of each bad record, in the order of discovery."""
        return list(self._known.values())

    def count(self, rows: int, bad: Sequence[tuple[Hashable, str]]) -> None:
        """Takes note of a batch of `rows` records, of which `bad` (record, reason) could not be
        read; `describe` names a record.

        Raises:
          DataError: too many are bad; the message lists them.
        """
        self._rows += rows
        new = [(number, reason) for number, reason in bad if number not in self._known]
        for number, reason in new:
            self._known[number] = (self._describe(number), reason)
        if not new:
            return
        seen = min(self._rows, self._records)
        tolerated = min(5, self._records // 20) if self._max_fraction > 0 else 0
        if len(self._known) > max(tolerated, self._max_fraction * seen):
            raise DataError(self._message(seen))

    def _message(self, seen: int, most: int = 20) -> str:
        names = "; ".join(f"{where}: {why}" for where, why in self.found[:most])
        rest = len(self._known) - most
        more = f"; and {rest} more" if rest > 0 else ""
        return (
            f"{len(self._known)} of the {seen} records read so far cannot be used, more than "
            f"data.max_bad_fraction={self._max_fraction:g} allows. They are: {names}{more}. "
            "Repair or remove them, or raise --config.data.max_bad_fraction to train without "
            "them."
        )


class Batches(Iterator[Batch]):
    """Iterator over one host's batches, made by worker processes (or by threads of this one when
    workers=0).

    `make_piece(batch, piece)` builds piece `piece` of host batch `batch` and runs in the workers,
    so it must pickle and depend on nothing but its arguments. It returns equal-keyed arrays with
    leading rows, and under "bad" a list of (record, reason). The pieces of a batch are
    joined in order; the order never depends on the workers.

    Use it as a context manager, or call `close`: it stops the workers and returns within seconds.
    """

    def __init__(
        self,
        make_piece: Callable[[int, int], dict[str, Any]],
        *,
        pieces: int,
        start: int,
        stop: int | None,
        workers: int,
        prefetch: int,
        bad: BadRecords,
    ):
        """Prepares the iterator; reading starts with the first `next`.

        Args:
          make_piece: see above.
          pieces: P, the pieces of one batch.
          start: number of the first batch.
          stop: number after the last batch, or None for an endless stream.
          workers: worker processes; 0 reads in threads of this process.
          prefetch: batches made ahead of their use.
          bad: where unreadable records are counted.
        """
        import grain

        _mark_flags_parsed()
        self._bad = bad
        self._workers = workers
        self._closed = False
        stop = _ENDLESS if stop is None else stop
        ahead = max(1, prefetch) * pieces
        dataset = (
            grain.MapDataset.range(start * pieces, stop * pieces)
            .map(functools.partial(_numbered_piece, make_piece, pieces))
            .to_iter_dataset(_read_options(workers, ahead))
        )
        if workers:
            options = grain.experimental.DatasetOptions(min_shm_size=_SHARED_MEMORY_BYTES)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(workers, max(1, ahead // workers)), _start_worker
            )
        dataset = dataset.batch(pieces, drop_remainder=True, batch_fn=_join)
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=1)
        self._iterator = dataset.__iter__()
        _start_without_sigint(self._iterator)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(where, why) of each record that could not be read so far."""
        return self._bad.found

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          DataError: too many records are bad.
          PeerLost: a worker process was killed.
        """
        if self._closed:
            raise StopIteration
        try:
            batch = next(self._iterator)
            bad = batch.pop("bad")
            self._bad.count(int(np.count_nonzero(batch["index"] >= 0)), bad)
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
                raise self._lost_worker(error) from error
            raise
        return batch

    def _lost_worker(self, error: RuntimeError) -> PeerLost:
        return PeerLost(
            f"One of the {self._workers} data worker processes was killed ({error}). The usual "
            "causes are memory (lower --config.data.workers or --config.data.prefetch), a full "
            "/dev/shm (in a container give it more, for example docker run --shm-size=8g) or a "
            "person. Start the run again: it goes on from its checkpoint."
        )

    def close(self) -> None:
        """Stops the workers and frees their memory. May be called again."""
        if not self._closed:
            self._closed = True
            self._iterator.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def worker_count(asked: int, in_memory: bool) -> int:
    """Returns the number of worker processes: `asked`, or for -1 what suits the source and this
    machine.

    A source that lies in memory needs none; otherwise one for each CPU core this process may use,
    at most 64.
    """
    if asked < -1:
        raise ConfigError(
            f"data.workers={asked} is not allowed: use 0 (this process) or more, or -1 to choose."
        )
    if asked >= 0:
        return asked
    return 0 if in_memory else min(64, len(os.sched_getaffinity(0)))


def _numbered_piece(make_piece: Callable[[int, int], dict], pieces: int, number: int) -> dict:
    return make_piece(*divmod(number, pieces))


def _join(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Concatenates the pieces of a batch and empties them, which frees their shared memory."""
    joined: dict[str, Any] = {
        key: np.concatenate([np.asarray(piece[key]) for piece in pieces])
        for key in pieces[0]
        if key != "bad"
    }
    joined["bad"] = [entry for piece in pieces for entry in piece["bad"]]
    for piece in pieces:
        piece.clear()
    return joined


def _read_options(workers: int, ahead: int) -> grain.ReadOptions:
    import grain

    if workers:
        return grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    threads = min(4, ahead, len(os.sched_getaffinity(0)))
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)


def _mark_flags_parsed() -> None:
    """Grain reads its options from absl flags, which a program that does not use absl never
    parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_without_sigint(iterator: Any) -> None:
    """Starts the reading thread with SIGINT blocked; its workers inherit that.

    A terminal sends Ctrl-C to every process of the group. The run answers it (finish the step,
    save, exit); its workers must go on until then.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        iterator.start_prefetch()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index: int, count: int) -> None:
    """Runs first in each worker: keeps it off the accelerator, alive through a SIGTERM, and never
    orphaned."""
    del index, count
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGTERM, _leave_after_grace)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent.sentinel,), daemon=True).start()


def _leave_after_grace(*_: object) -> None:
    timer = threading.Timer(_TERM_GRACE_SECONDS, os._exit, (128 + signal.SIGTERM,))
    timer.daemon = True
    timer.start()


def _leave_with(sentinel: int) -> None:
    """Ends this worker when its parent is gone, even by SIGKILL, which no exit handler sees."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
