"""Tokenises one shard of a source: its ids, its index and what is noted of it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moe.data.cache.read import BLOCK, id_type
from moe.data.cache.sealed_files import process, read_sealed, write_sealed
from moe.data.cache.shard import MOST_NAMED, Index, Shard, parse_shard, sha256_of, shard_name
from moe.text.fingerprint import unreadable
from moe.text.reader import Document, Reader
from moe.text.vocabulary import UNKNOWN, Vocabulary
from trainlib import files
from trainlib.errors import DataError, shown


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
    """Tokenises one shard into `partial`, unless it is finished there; its json file is written
    last.

    Args:
      partial: the directory of what is unfinished.
      reader: what is read.
      vocabulary: how it is tokenised.
      plan: digest of the plan that this shard belongs to.
      shard: its number.
      shards: how many there are.
    """
    name = shard_name(shard, shards)
    earlier = read_shard(partial, name, plan)
    if earlier is not None:
        return earlier
    temporary = partial / f"{name}.tokens.{process()}.tmp"
    writer = _StreamWriter(temporary, id_type(vocabulary.size))
    tally = _Tally(vocabulary, reader.features)
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
        record = read_sealed(path)
        if record is not None and record.get("plan") == plan:
            shard = parse_shard(record.get("shard"), shown(path))
            sizes = [(p.stat().st_size if p.is_file() else -1, s) for p, s in shard.files(partial)]
            if shard.name == name and all(size == wanted for size, wanted in sizes):
                return shard
    return None
