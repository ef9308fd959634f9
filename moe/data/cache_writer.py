"""Making a cache of tokenised data: shard by shard, in several processes or machines, resumable.

Until it is complete, a cache NAME is the directory NAME.partial: plan.json says what is being made,
and each finished shard has a SHARD.json, written last. What is finished stays when preparation is
stopped, however hard, and started again.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from moe.data.cache import BLOCK, FORMAT, Shard, id_type, index_digest, read_json, sha256_of
from moe.data.readers import Document, Reader, unreadable
from moe.data.vocabulary import Vocabulary
from trainlib.data import BadRecords
from trainlib.errors import DataError, StorageError

_TOKEN = secrets.token_hex(4)  # containers of one image can have the same host name and numbers


def _process() -> str:
    """Names this process among all that may write to one directory at once."""
    return f"{socket.gethostname()}-{os.getpid()}-{_TOKEN}"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all, whatever happens."""
    temporary = path.with_name(f"{path.name}.{_process()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def make_directory(path: Path) -> None:
    """Makes a directory of the cache; raises StorageError where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be made ({error.strerror}). Tokenised data is kept there: choose "
            "another place with --config.data.cache=DIR."
        ) from error


def _save_array(path: Path, array: np.ndarray) -> None:
    temporary = path.with_name(f"{path.name}.{_process()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, array)
    temporary.replace(path)


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


def write_shard(
    partial: Path, reader: Reader, vocabulary: Vocabulary, shard: int, shards: int
) -> Shard:
    """Tokenises one shard into `partial`, or finds it there; its json file is written last."""
    name = f"{shard:05d}-of-{shards:05d}"
    done = partial / f"{name}.json"
    if done.is_file():
        return Shard(**json.loads(done.read_text()))
    temporary = partial / f"{name}.tokens.{_process()}.tmp"
    writer = _StreamWriter(temporary, id_type(vocabulary.size))
    pairs = "inputs" in reader.features
    ends, inputs, unusable, position = [], [], [], 0
    counts = np.zeros(vocabulary.size, np.int64)
    for where, ids, reason in _encoded(reader, vocabulary, shard, shards):
        if reason:
            unusable.append([where, reason])
            continue
        for key in reader.features:
            writer.append(ids[key])
            position += len(ids[key])
        ends.append(position)
        inputs.append(len(ids["inputs"]) if pairs else 0)
        counts += np.bincount(ids["targets"], minlength=vocabulary.size)
    writer.close()
    size, digest = temporary.stat().st_size, sha256_of(temporary)
    temporary.replace(partial / f"{name}.tokens")
    _save_array(partial / f"{name}.ends.npy", np.asarray(ends, np.int64))
    if pairs:
        _save_array(partial / f"{name}.inputs.npy", np.asarray(inputs, np.int32))
    _save_array(partial / f"{name}.counts.npy", counts)
    index = index_digest(partial, name, pairs)
    record = Shard(name, len(ends), position, int(counts.sum()), size, digest, index, unusable)
    write_atomically(done, json.dumps(dataclasses.asdict(record)).encode())
    return record


def begin(
    partial: Path,
    reader: Reader,
    vocabulary: Vocabulary,
    shards: int,
    definitions: str,
    parts: int,
    report: Callable[[str], None],
) -> int:
    """Makes the directory `partial`, or finds the one that an interrupted preparation left.

    Returns:
      Its number of shards. What is left of another source, vocabulary or state of the files is
      reported and removed, unless `parts` machines may be writing there.

    Raises:
      DataError: the source is not there, or is not the one that other machines read.
      StorageError: the directory cannot be written.
    """
    fingerprint = reader.fingerprint()
    if fingerprint is None:
        raise DataError(
            f"{reader.name}: there is nothing to read. Give a folder with *.txt (text:) or "
            "*.jsonl (jsonl:) files, or the path of one file."
        )
    plan = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "vocabulary": vocabulary.digest,
        "definitions": definitions,
    }
    found = read_json(partial / "plan.json")
    if found and {**found, "shards": 0} == {**plan, "shards": 0}:
        return found["shards"]
    if found:
        finished = len(list(partial.glob("?????-of-?????.json")))
        other = f"{finished} finished shards of other files, vocabulary or definitions"
        if finished and parts > 1:
            raise DataError(
                f"{partial} holds {other} than this machine has for {reader.name}. Give all parts "
                "the same files and versions; to begin anew, remove that directory."
            )
        if finished:
            report(f"{partial} holds {other}: they are removed")
        shutil.rmtree(partial)
    make_directory(partial)
    write_atomically(partial / "plan.json", json.dumps({**plan, "shards": shards}).encode())
    return shards


def finish(
    directory: Path, partial: Path, reader: Reader, vocabulary: Vocabulary, shards: list[Shard]
) -> None:
    """Gives a cache whose shards are all written its manifest and its name."""
    for left in partial.glob("?????-of-*.tmp"):  # of processes that were killed
        left.unlink(missing_ok=True)
    plan = read_json(partial / "plan.json")
    digests = "".join(shard.sha256 + shard.index_sha256 for shard in shards)
    manifest = {
        **(plan or {}),
        "source": reader.name,
        "features": list(reader.features),
        "vocabulary_name": vocabulary.name,
        "vocabulary_size": vocabulary.size,
        "extra_ids": vocabulary.extra_ids,
        "digest": hashlib.sha256(digests.encode()).hexdigest()[:16],
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    write_atomically(partial / "manifest.json", json.dumps(manifest, indent=1).encode())
    try:
        partial.rename(directory)
    except OSError:  # another process was first; shards are equal whoever writes them
        if not (directory / "manifest.json").is_file():
            raise
        shutil.rmtree(partial, ignore_errors=True)


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
    definitions: str = "",
    prepare_worker: Callable[[], None] | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Makes the cache `directory`, or goes on where an earlier call stopped.

    Args:
      directory: where it shall be; when it is there already, nothing is done.
      reader: what is read.
      vocabulary: how it is tokenised.
      shards: number of shards; one that was begun keeps its own.
      workers: processes; 1 or less works in this one.
      max_bad_fraction: as in the `data` part of a configuration.
      title: names source and split in what is reported; default: the reader's name.
      part: (index, count): which share of the shards to write, for several machines.
      private: keeps what is unfinished apart from other processes that do the same at once, as the
        hosts of a pod may; it cannot be resumed.
      definitions: digest of the file that defines what is read, where there is one.
      prepare_worker: runs first in each worker process.
      report: told one line for each shard.

    Returns:
      Whether the cache is complete; False while other parts are missing.

    Raises:
      DataError: nothing to read, too many unusable documents, or ids outside the vocabulary.
      StorageError: the disk is full or cannot be written.
    """
    if (directory / "manifest.json").is_file():
        return True
    partial = directory.with_name(f"{directory.name}.partial{f'-{_process()}' if private else ''}")
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
        if (directory / "manifest.json").is_file():
            return True  # another process finished it meanwhile
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
    shards = begin(partial, reader, vocabulary, shards, definitions, part[1], report)
    bad = _Unusable(max_bad_fraction)
    own = range(part[0], shards, part[1])
    write = functools.partial(write_shard, partial, reader, vocabulary, shards=shards)
    for shard in _in_processes(write, own, workers, prepare_worker):
        bad.count(shard)
        report(
            f"{title}: shard {shard.name}, {shard.documents:,} documents, "
            f"{shard.tokens:,} tokens, {len(shard.unusable):,} documents unusable"
        )
    names = [f"{shard:05d}-of-{shards:05d}" for shard in range(shards)]
    found = [read_json(partial / f"{name}.json") for name in names]
    if not all(found):
        return (directory / "manifest.json").is_file()
    done = [Shard(**shard) for shard in found if shard]
    if not sum(shard.documents for shard in done):
        unusable = [": ".join(entry) for shard in done for entry in shard.unusable]
        why = f"none of its documents can be used: {'; '.join(unusable[:3])}" if unusable else (
            "all its documents belong to the other part of the data"
        )  # fmt: skip
        raise DataError(
            f"{title} has no text, {why}. Give it more documents (a file of text is one for each "
            "64 KiB), or another data.holdout."
        )
    if reader.fingerprint() != (read_json(partial / "plan.json") or {}).get("fingerprint"):
        raise DataError(
            f"{title} changed while it was tokenised, so that shards hold different states of its "
            "files. Let nothing write there, and prepare it again."
        )
    finish(directory, partial, reader, vocabulary, done)
    return True


class _Unusable:
    """Counts unusable documents over shards, and stops the preparation when they are too many."""

    def __init__(self, max_fraction: float):
        self.total = 0
        self._places: list[str] = []
        # The number of documents is known at the end only.
        self._bad = BadRecords(2**62, max_fraction, lambda number: self._places[number])

    def count(self, shard: Shard) -> None:
        rows = shard.documents + len(shard.unusable)
        self.total += rows
        first = len(self._places)
        self._places += [where for where, _ in shard.unusable]
        reasons = [(first + i, why) for i, (_, why) in enumerate(shard.unusable)]
        self._bad.count(rows, reasons)


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
    with concurrent.futures.ProcessPoolExecutor(workers, context, prepare_worker) as pool:
        futures = [pool.submit(write, shard=shard) for shard in shards]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
