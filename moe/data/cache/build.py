"""Making a cache of tokenised data: shard by shard, in several processes or machines, resumable.

Until it is complete, a cache NAME is the directory NAME.partial: plan.json says what is being made,
and each finished shard has a SHARD.json, written last. Finished shards stay when preparation is
stopped, however hard, and started again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from moe.data.cache.read import MANIFEST, Cache, is_complete
from moe.data.cache.sealed_files import make_directory, process, read_sealed, write_sealed
from moe.data.cache.shard import FORMAT, Shard, digest_of, shard_name
from moe.data.cache.write_shard import read_shard, write_shard
from moe.text.reader import Reader
from moe.text.vocabulary import Vocabulary
from trainlib.data.bad_records import BadRecords
from trainlib.errors import DataError, Interrupted, StorageError, shown
from trainlib.run.interrupt import end_children
from trainlib.seal import seal_of

PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class _Job:
    """One cache that is being made: arguments of `build`, and where unfinished shards are."""

    directory: Path
    partial: Path
    reader: Reader
    vocabulary: Vocabulary
    title: str
    part: tuple[int, int]
    definitions: str
    report: Callable[[str], None]


def _begin(job: _Job, shards: int) -> dict[str, Any]:
    """Makes the directory of what is unfinished, or resumes the one that an interrupted
    preparation left.

    Returns:
      The plan, with its number of shards. What is left of another source, vocabulary or state of
      the files is reported and removed, unless several machines may be writing there.

    Raises:
      DataError: the source is not there, or is not the one that other machines read.
      StorageError: the directory cannot be written.
    """
    fingerprint = job.reader.fingerprint()
    if fingerprint is None:
        raise DataError(
            f"{job.reader.name}: there is nothing to read. Give a folder of text (text:, .txt or "
            ".md) or JSON files (jsonl:, .jsonl or .json), the path of one file, or the folder of "
            "the Brown corpus (brown:)."
        )
    plan = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "vocabulary": job.vocabulary.digest,
        "definitions": job.definitions,
    }
    damaged, earlier = False, None
    try:
        earlier = read_sealed(job.partial / PLAN)
    except DataError:
        damaged = True
    if earlier and {**earlier, "shards": 0} == {**plan, "shards": 0} and _whole(earlier["shards"]):
        return earlier
    _remove_others(job, earlier, damaged)
    make_directory(job.partial)
    plan["shards"] = shards
    write_sealed(job.partial / PLAN, plan)
    return plan


def _remove_others(job: _Job, earlier: dict[str, Any] | None, damaged: bool) -> None:
    """Removes what another source, vocabulary or state of the files left unfinished.

    Raises:
      DataError: other machines may be writing there.
    """
    finished = len(list(job.partial.glob("*-of-*.json")))
    if not (earlier or damaged or finished):
        return
    other = f"{finished} finished shards of other files, vocabulary or definitions"
    if not earlier:
        other = f"{finished} finished shards, and the plan that says what of is damaged or gone"
    if finished and job.part[1] > 1:
        what = "" if not earlier else f" than this machine has for {job.reader.name}"
        raise DataError(
            f"{shown(job.partial)} holds {other}{what}. Give all parts the same files and "
            "versions; to begin anew, remove that directory."
        )
    if finished:
        job.report(f"{shown(job.partial)} holds {other}: they are removed")
    shutil.rmtree(job.partial)


def _whole(shards: Any) -> bool:
    return type(shards) is int and 0 < shards < 100_000


def _finish(job: _Job, plan: dict[str, Any], shards: list[Shard]) -> None:
    """Gives a cache whose shards are all written its manifest and its name; a cache of another
    state of the files that has this name is removed.
    """
    directory, partial = job.directory, job.partial
    for left in partial.glob("*-of-*.tmp"):  # of processes that were killed
        left.unlink(missing_ok=True)
    manifest = {
        **plan,
        "source": job.reader.name,
        "features": list(job.reader.features),
        "vocabulary_name": job.vocabulary.name,
        "vocabulary_size": job.vocabulary.size,
        "extra_ids": job.vocabulary.extra_ids,
        "digest": digest_of(shards),
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    write_sealed(partial / MANIFEST, manifest)
    if _finished(directory, plan["fingerprint"]):  # another process was first
        shutil.rmtree(partial, ignore_errors=True)
        return
    if is_complete(directory):
        old = directory.with_name(f"{directory.name}.old-{process()}")
        with contextlib.suppress(FileNotFoundError):  # another process was first
            os.rename(directory, old)
            shutil.rmtree(old, ignore_errors=True)
    try:
        os.rename(partial, directory)
    except OSError:  # another process was first; shards are equal whoever writes them
        if not is_complete(directory):
            raise
        shutil.rmtree(partial, ignore_errors=True)


def _finished(directory: Path, fingerprint: str | None) -> bool:
    """Whether a whole cache of that state of the files lies there."""
    with contextlib.suppress(DataError):
        return Cache(directory).manifest["fingerprint"] == fingerprint
    return False


def build(
    directory: Path,
    reader: Reader,
    vocabulary: Vocabulary,
    *,
    shards: int,
    workers: int,
    max_bad_fraction: float,
    title: str = "",
    part: tuple[int, int] = (0, 1),
    private: bool = False,
    replace: bool = False,
    definitions: str = "",
    prepare_worker: Callable[[], None] | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Makes the cache `directory`, or resumes where an earlier call stopped.

    Args:
      directory: where it shall be; when it is there already, nothing is done unless `replace`.
      reader: what is read.
      vocabulary: how it is tokenised.
      shards: number of shards; a cache that was started before has the number of then.
      workers: processes; 1 or less works in this one.
      max_bad_fraction: as in the `data` part of a configuration.
      title: names source and split in what is reported; default: the reader's name.
      part: (index, count): which share of the shards to write, for several machines.
      private: writes into a directory of this process alone, since the hosts of a pod may do the
        same at once; it cannot be resumed.
      replace: makes it although there is one, which is removed when the new one is complete.
      definitions: digest of the file that defines what is read, where there is one.
      prepare_worker: runs first in each worker process.
      report: called with one line for each shard.

    Returns:
      Whether the cache is complete; False while other parts are missing.

    Raises:
      DataError: nothing to read, too many unusable documents, or ids outside the vocabulary.
      StorageError: the disk is full or cannot be written.
    """
    if is_complete(directory) and not replace:
        return True
    partial = directory.with_name(f"{directory.name}.partial{f'-{process()}' if private else ''}")
    job = _Job(
        directory, partial, reader, vocabulary, title or reader.name, part, definitions, report
    )
    try:
        return _write_and_finish(job, shards, workers, max_bad_fraction, prepare_worker)
    except (OSError, StorageError) as error:
        if _finished(directory, reader.fingerprint()):
            return True  # another process was faster
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{directory} cannot be written ({error}). Free space or choose another place with "
            "--config.data.cache=DIR; the same command goes on from the finished shards."
        ) from error
    finally:
        if private:
            shutil.rmtree(partial, ignore_errors=True)


def _write_and_finish(
    job: _Job,
    shards: int,
    workers: int,
    max_bad_fraction: float,
    prepare_worker: Callable[[], None] | None,
) -> bool:
    """Writes this machine's share of the shards, and finishes a cache that has all of them."""
    plan = _begin(job, shards)
    shards, bad = plan["shards"], _Unusable(max_bad_fraction)
    digest = seal_of(plan)
    share = range(job.part[0], shards, job.part[1])
    write = functools.partial(
        write_shard, job.partial, job.reader, job.vocabulary, digest, shards=shards
    )
    for shard in _in_processes(write, share, workers, prepare_worker):
        bad.count(shard)
        job.report(
            f"{job.title}: shard {shard.name}, {shard.documents:,} documents, "
            f"{shard.tokens:,} tokens, {shard.unusable_count:,} documents unusable"
        )
    written = [read_shard(job.partial, shard_name(n, shards), digest) for n in range(shards)]
    done = [shard for shard in written if shard is not None]
    if len(done) < shards:
        return _finished(job.directory, plan["fingerprint"])
    if not sum(shard.documents for shard in done):
        raise _no_text(job.title, done)
    if job.reader.fingerprint() != plan["fingerprint"]:
        raise DataError(
            f"{job.title} changed while it was tokenised, so that shards hold different states of "
            "its files. Let nothing write there, and prepare it again."
        )
    _finish(job, plan, done)
    return True


def _no_text(title: str, shards: list[Shard]) -> DataError:
    """The error for a source without a document that can be used."""
    unusable = [": ".join(entry) for shard in shards for entry in shard.unusable]
    why = "no document that can be used belongs to it. Give the source more documents"
    if unusable:
        why = f"none of its documents can be used: {'; '.join(unusable[:3])}. Repair them"
    elif title.endswith("(holdout)"):
        why += (
            ", or set --config.data.holdout=0: then all of them are trained on, and nothing is "
            "evaluated"
        )
    return DataError(f"{title} has no text: {why}.")


class _Unusable:
    """Counts unusable documents over shards, and stops the preparation when they are too many."""

    def __init__(self, max_fraction: float):
        self._places: list[str] = []
        # The number of documents is known at the end only.
        self._bad = BadRecords(2**62, max_fraction, lambda number: self._places[number])

    def count(self, shard: Shard) -> None:
        first, documents = len(self._places), shard.documents + shard.unusable_count
        more = shard.unusable_count - len(shard.unusable)
        named = [*shard.unusable, *[[f"{shard.name}, another", "is not named"]] * more]
        self._places += [where for where, _ in named]
        self._bad.count(documents, [(first + i, why) for i, (_, why) in enumerate(named)])


def _in_processes(
    write: Callable[..., Shard],
    shards: Iterable[int],
    workers: int,
    prepare_worker: Callable[[], None] | None,
) -> Iterator[Shard]:
    shards = list(shards)
    if workers <= 1 or len(shards) <= 1:
        yield from (write(shard=shard) for shard in shards)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, _start_worker, (prepare_worker,)
    ) as pool:
        futures = [pool.submit(write, shard=shard) for shard in shards]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except Interrupted:
            end_children()  # a shard takes minutes, and one that is not finished does not count
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(prepare_worker: Callable[[], None] | None) -> None:
    """Runs first in each worker. A terminal sends Ctrl-C to all processes: the command answers it,
    and ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if prepare_worker is not None:
        prepare_worker()
