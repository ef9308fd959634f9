"""Making a cache of tokenised data: shard by shard, in several processes or machines, resumable.

Until it is complete, a cache NAME is the directory NAME.partial: plan.json says what is being made,
and each finished shard has a SHARD.json, written last. What is finished stays when preparation is
stopped, however hard, and started again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moe.data.cache.read import BLOCK, MANIFEST, Cache, id_type, is_complete
from moe.data.cache.shard import (
    FORMAT,
    MOST_NAMED,
    Index,
    Shard,
    digest_of,
    parse_shard,
    sha256_of,
    shard_name,
)
from moe.text.fingerprint import unreadable
from moe.text.reader import Document, Reader
from moe.text.vocabulary import UNKNOWN, Vocabulary
from trainlib import files
from trainlib.data.bad_records import BadRecords
from trainlib.errors import DataError, Interrupted, StorageError, shown
from trainlib.run.interrupt import end_children
from trainlib.seal import seal_of, sealed, unsealed
from trainlib.untrusted_files import read_small

_TOKEN = secrets.token_hex(4)  # containers of one image can have the same host name and numbers
PLAN = "plan.json"


def process() -> str:
    """Names this process among all that may write to one directory at once."""
    return f"{socket.gethostname()}-{os.getpid()}-{_TOKEN}"


def make_directory(path: Path) -> None:
    """Makes a directory of the cache; raises StorageError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.make_directory(path)
    except OSError as error:
        raise StorageError(
            f"{shown(path)} cannot be made ({error.strerror}). Tokenised data is kept there: "
            "choose another place with --config.data.cache=DIR."
        ) from error


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes JSON that guards itself, whole or not at all."""
    files.write_atomically(path, sealed(value), process())


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None where there is nothing.

    Raises:
      DataError: it is damaged.
    """
    if not os.path.lexists(path):
        return None
    return unsealed(read_small(path, error=DataError), shown(path), DataError)


def _save_array(path: Path, array: np.ndarray) -> Index:
    content = io.BytesIO()
    np.save(content, array)
    files.write_atomically(path, content.getvalue(), process())
    return Index(path.stat().st_size, sha256_of(path))


class _StreamWriter:
    """Cuts what is appended into records of one block."""

    def __init__(self, path: Path, dtype: np.dtype):
        from array_record.python.array_record_module import ArrayRecordWriter

        self._writer = ArrayRecordWriter(str(path), "group_size:1,zstd:3")
        self._dtype, self._rest = dtype, np.zeros(0, dtype)

    def append(self, ids: np.ndarray) -> None:
        ids = np.concatenate([self._rest, ids.astype(self._dtype)])
        whole = len(ids) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            self._writer.write(ids[start : start + BLOCK].tobytes())
        self._rest = ids[whole:]

    def close(self) -> None:
        """Writes what is left; raises OSError when anything could not be written."""
        if len(self._rest):
            self._writer.write(self._rest.tobytes())
        try:
            self._writer.close()
        except RuntimeError as error:  # as the writer reports a full disk, and only now
            raise OSError(str(error)) from error


def _encoded(
    reader: Reader, vocabulary: Vocabulary, shard: int, shards: int
) -> Iterator[tuple[str, dict[str, np.ndarray], str]]:
    """Yields (where, feature -> ids, why unusable) for each document.

    Raises:
      DataError: an id outside the vocabulary, or a file that cannot be read.
    """
    for where, text, reason in _documents(reader, shard, shards):
        ids = {
            key: vocabulary.encode(value) if isinstance(value, str) else np.asarray(value)
            for key, value in text.items()
        }
        for key, values in ids.items():
            if len(values) and (values.min() < 0 or values.max() >= vocabulary.size):
                wrong = values[(values < 0) | (values >= vocabulary.size)][0]
                raise DataError(
                    f"{reader.name}, {where}: '{key}' has the id {wrong}, outside the "
                    f"{vocabulary.size} ids of the vocabulary {vocabulary.name}."
                )
        if not reason and not len(ids["targets"]):
            reason = "has no tokens"
        yield where, ids, reason


def _documents(reader: Reader, shard: int, shards: int) -> Iterator[Document]:
    try:
        yield from reader.documents(shard, shards)
    except OSError as error:  # of the source: what a consumer raises does not come here
        raise unreadable(reader.name, error) from error


class _Tally:
    """What is noted of the documents of a shard while they are written."""

    def __init__(self, vocabulary: Vocabulary, features: tuple[str, ...]):
        self.features, self.position, self.unknown = features, 0, 0
        self.ends: list[int] = []
        self.inputs: list[int] = []
        self.counts = np.zeros(vocabulary.size, np.int64)
        self.unusable: list[list[str]] = []
        self.unusable_count = 0

    def leave_out(self, where: str, reason: str) -> None:
        self.unusable_count += 1
        if len(self.unusable) < MOST_NAMED:
            self.unusable.append([shown(where), shown(reason)])

    def add(self, ids: dict[str, np.ndarray]) -> None:
        for key in self.features:
            self.position += len(ids[key])
            self.unknown += int((ids[key] == UNKNOWN).sum())
        self.ends.append(self.position)
        self.inputs.append(len(ids["inputs"]) if "inputs" in self.features else 0)
        self.counts += np.bincount(ids["targets"], minlength=len(self.counts))

    def save(self, stem: str) -> dict[str, Index]:
        arrays = {"ends": np.asarray(self.ends, np.int64), "counts": self.counts}
        if "inputs" in self.features:
            arrays["inputs"] = np.asarray(self.inputs, np.int32)
        return {
            kind: _save_array(Path(f"{stem}.{kind}.npy"), array) for kind, array in arrays.items()
        }


def write_shard(
    partial: Path, reader: Reader, vocabulary: Vocabulary, plan: str, shard: int, shards: int
) -> Shard:
    """Tokenises one shard into `partial`, or finds it there; its json file is written last.

    Args:
      partial: the directory of what is unfinished.
      reader: what is read.
      vocabulary: how it is tokenised.
      plan: digest of the plan that this shard belongs to.
      shard: its number.
      shards: how many there are.
    """
    name = shard_name(shard, shards)
    found = read_shard(partial, name, plan)
    if found is not None:
        return found
    temporary = partial / f"{name}.tokens.{process()}.tmp"
    writer, tally = (
        _StreamWriter(temporary, id_type(vocabulary.size)),
        _Tally(vocabulary, reader.features),
    )
    for where, ids, reason in _encoded(reader, vocabulary, shard, shards):
        if reason:
            tally.leave_out(where, reason)
            continue
        for key in reader.features:
            writer.append(ids[key])
        tally.add(ids)
    writer.close()
    size, digest = temporary.stat().st_size, sha256_of(temporary)
    os.replace(temporary, partial / f"{name}.tokens")
    record = Shard(
        name=name,
        documents=len(tally.ends),
        tokens=tally.position,
        targets=int(tally.counts.sum()),
        unknown=tally.unknown,
        file_bytes=size,
        sha256=digest,
        index=tally.save(str(partial / name)),
        unusable_count=tally.unusable_count,
        unusable=tally.unusable,
    )
    write_sealed(partial / f"{name}.json", {"plan": plan, "shard": dataclasses.asdict(record)})
    return record


def read_shard(partial: Path, name: str, plan: str) -> Shard | None:
    """The finished shard of that name and plan whose files are all there; None when there is none,
    and it is written again.
    """
    path = partial / f"{name}.json"
    with contextlib.suppress(DataError):  # damaged: written again
        found = read_sealed(path)
        if found is not None and found.get("plan") == plan:
            shard = parse_shard(found.get("shard"), shown(path))
            sizes = [(p.stat().st_size if p.is_file() else -1, s) for p, s in shard.files(partial)]
            if shard.name == name and all(size == wanted for size, wanted in sizes):
                return shard
    return None


def begin(
    partial: Path,
    reader: Reader,
    vocabulary: Vocabulary,
    shards: int,
    definitions: str,
    parts: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Makes the directory `partial`, or finds the one that an interrupted preparation left.

    Returns:
      The plan, with its number of shards. What is left of another source, vocabulary or state of
      the files is reported and removed, unless `parts` machines may be writing there.

    Raises:
      DataError: the source is not there, or is not the one that other machines read.
      StorageError: the directory cannot be written.
    """
    fingerprint = reader.fingerprint()
    if fingerprint is None:
        raise DataError(
            f"{reader.name}: there is nothing to read. Give a folder of text (text:, .txt or .md) "
            "or JSON files (jsonl:, .jsonl or .json), or the path of one file."
        )
    plan = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "vocabulary": vocabulary.digest,
        "definitions": definitions,
    }
    damaged = False
    try:
        found = read_sealed(partial / PLAN)
    except DataError:
        found, damaged = None, True
    if found and {**found, "shards": 0} == {**plan, "shards": 0} and _whole(found["shards"]):
        return found
    finished = len(list(partial.glob("*-of-*.json")))
    if found or damaged or finished:
        other = f"{finished} finished shards of other files, vocabulary or definitions"
        if not found:
            other = f"{finished} finished shards, and the plan that says what of is damaged or gone"
        if finished and parts > 1:
            what = "" if not found else f" than this machine has for {reader.name}"
            raise DataError(
                f"{shown(partial)} holds {other}{what}. Give all parts the same files and "
                "versions; to begin anew, remove that directory."
            )
        if finished:
            report(f"{shown(partial)} holds {other}: they are removed")
        shutil.rmtree(partial)
    make_directory(partial)
    plan["shards"] = shards
    write_sealed(partial / PLAN, plan)
    return plan


def _whole(shards: Any) -> bool:
    return type(shards) is int and 0 < shards < 100_000


def finish(
    directory: Path,
    partial: Path,
    reader: Reader,
    vocabulary: Vocabulary,
    plan: dict[str, Any],
    shards: list[Shard],
) -> None:
    """Gives a cache whose shards are all written its manifest and its name; what has that name is
    of another state of the files, and goes.
    """
    for left in partial.glob("*-of-*.tmp"):  # of processes that were killed
        left.unlink(missing_ok=True)
    manifest = {
        **plan,
        "source": reader.name,
        "features": list(reader.features),
        "vocabulary_name": vocabulary.name,
        "vocabulary_size": vocabulary.size,
        "extra_ids": vocabulary.extra_ids,
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
    """Makes the cache `directory`, or goes on where an earlier call stopped.

    Args:
      directory: where it shall be; when it is there already, nothing is done unless `replace`.
      reader: what is read.
      vocabulary: how it is tokenised.
      shards: number of shards; one that was begun keeps its own.
      workers: processes; 1 or less works in this one.
      max_bad_fraction: as in the `data` part of a configuration.
      title: names source and split in what is reported; default: the reader's name.
      part: (index, count): which share of the shards to write, for several machines.
      private: keeps what is unfinished apart from other processes that do the same at once, as the
        hosts of a pod may; it cannot be resumed.
      replace: makes it although there is one, which goes when the new one is complete.
      definitions: digest of the file that defines what is read, where there is one.
      prepare_worker: runs first in each worker process.
      report: told one line for each shard.

    Returns:
      Whether the cache is complete; False while other parts are missing.

    Raises:
      DataError: nothing to read, too many unusable documents, or ids outside the vocabulary.
      StorageError: the disk is full or cannot be written.
    """
    if is_complete(directory) and not replace:
        return True
    partial = directory.with_name(f"{directory.name}.partial{f'-{process()}' if private else ''}")
    try:
        return _write_and_finish(
            directory,
            partial,
            reader,
            vocabulary,
            shards,
            workers,
            max_bad_fraction,
            title or reader.name,
            part,
            definitions,
            prepare_worker,
            report,
        )
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
    directory: Path,
    partial: Path,
    reader: Reader,
    vocabulary: Vocabulary,
    shards: int,
    workers: int,
    max_bad_fraction: float,
    title: str,
    part: tuple[int, int],
    definitions: str,
    prepare_worker: Callable[[], None] | None,
    report: Callable[[str], None],
) -> bool:
    plan = begin(partial, reader, vocabulary, shards, definitions, part[1], report)
    shards, bad = plan["shards"], _Unusable(max_bad_fraction)
    digest = seal_of(plan)
    own = range(part[0], shards, part[1])
    write = functools.partial(write_shard, partial, reader, vocabulary, digest, shards=shards)
    for shard in _in_processes(write, own, workers, prepare_worker):
        bad.count(shard)
        report(
            f"{title}: shard {shard.name}, {shard.documents:,} documents, "
            f"{shard.tokens:,} tokens, {shard.unusable_count:,} documents unusable"
        )
    found = [read_shard(partial, shard_name(number, shards), digest) for number in range(shards)]
    done = [shard for shard in found if shard is not None]
    if len(done) < shards:
        return _finished(directory, plan["fingerprint"])
    if not sum(shard.documents for shard in done):
        unusable = [": ".join(entry) for shard in done for entry in shard.unusable]
        why = "no document that can be used belongs to it. Give the source more documents"
        if unusable:
            why = f"none of its documents can be used: {'; '.join(unusable[:3])}. Repair them"
        elif title.endswith("(holdout)"):
            why += (
                ", or set --config.data.holdout=0: then all of them are trained on, and nothing is "
                "evaluated"
            )
        raise DataError(f"{title} has no text: {why}.")
    if reader.fingerprint() != plan["fingerprint"]:
        raise DataError(
            f"{title} changed while it was tokenised, so that shards hold different states of its "
            "files. Let nothing write there, and prepare it again."
        )
    finish(directory, partial, reader, vocabulary, plan, done)
    return True


class _Unusable:
    """Counts unusable documents over shards, and stops the preparation when they are too many."""

    def __init__(self, max_fraction: float):
        self._places: list[str] = []
        # The number of documents is known at the end only.
        self._bad = BadRecords(2**62, max_fraction, lambda number: self._places[number])

    def count(self, shard: Shard) -> None:
        first, rows = len(self._places), shard.documents + shard.unusable_count
        more = shard.unusable_count - len(shard.unusable)
        named = [*shard.unusable, *[[f"{shard.name}, another", "is not named"]] * more]
        self._places += [where for where, _ in named]
        self._bad.count(rows, [(first + i, why) for i, (_, why) in enumerate(named)])


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
        workers, context, _begin, (prepare_worker,)
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


def _begin(prepare_worker: Callable[[], None] | None) -> None:
    """Runs first in each worker. A terminal sends Ctrl-C to all processes: the command answers it,
    and ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if prepare_worker is not None:
        prepare_worker()
