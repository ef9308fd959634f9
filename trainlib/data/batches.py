"""Batches of one host, made ahead of their use by worker processes (Grain) and joined in order.

P pieces of one host's batch.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from trainlib.chips import usable_cores
from trainlib.data.bad_records import BadRecords
from trainlib.errors import ConfigError, PeerLost

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]

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


class Batches(Iterator[Batch]):
    """Iterator over one host's batches, made by worker processes (or by threads of this one when
    workers=0).

    `make_piece(batch, piece)` builds piece `piece` of host batch `batch` and runs in the workers,
    so it must pickle and depend on nothing but its arguments. It returns equal-keyed arrays whose
    first dimension counts the records, and under "bad" a list of (record, reason). The pieces of a
    batch are joined in order; the order never depends on the workers.

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
        note: Callable[[Batch], object] = lambda batch: None,
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
          note: called with each batch, in this process and thread, before it is returned.
        """
        import grain

        _mark_flags_parsed()
        self._bad, self._note = bad, note
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
        dataset = dataset.batch(
            pieces, drop_remainder=True, batch_fn=functools.partial(_join, workers > 0)
        )
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=1)
        self._iterator = dataset.__iter__()
        _start_without_sigint(self._iterator)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(where, why) of each record that could not be read so far."""
        return self._bad.listed

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
            self._note(batch)
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
    return 0 if in_memory else min(64, usable_cores())


def _numbered_piece(make_piece: Callable[[int, int], dict], pieces: int, number: int) -> dict:
    return make_piece(*divmod(number, pieces))


def _join(shared: bool, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Concatenates the pieces of a batch and empties them, which frees their shared memory.

    A single piece of this process is the batch, and not copied.
    """
    if len(pieces) == 1 and not shared:
        return dict(pieces[0])
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
    threads = min(4, ahead, usable_cores())
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


def _start_worker(*_: int) -> None:
    """Runs first in each worker: keeps it off the accelerator, to one thread of NumPy's products
    (there are as many workers as cores), alive through a SIGTERM, and never orphaned."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1, user_api="blas")
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
