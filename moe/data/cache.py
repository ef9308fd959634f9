"""Tokenised data on disk: one stream of ids in ArrayRecord shards, with the ends of its documents.

A cache is a directory that appears under its name only when it is complete:
  manifest.json             what it was made from; sizes, digests, unusable documents of each shard
  SHARD.tokens              ArrayRecord; record n holds the ids [n*2048, (n+1)*2048) of the shard
  SHARD.ends.npy            int64 [documents], where each document ends in the shard
  SHARD.inputs.npy          int32 [documents], how many of its ids are its inputs; only for pairs
  SHARD.counts.npy          int64 [V], how often each id occurs in targets
Where it lies follows from the settings that decide its content (`catalog.cache_directory`); the
manifest holds the fingerprint of what was read and the digest of the vocabulary, and neither may
differ from those of a run.
`moe.data.cache_writer` makes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainlib.errors import DataError


class Damage(NamedTuple):
    """What of a cache cannot be used."""

    where: str  # the file, the record and its range in the shard
    why: str


class DamagedRecord(OSError):
    """A record of a cache that cannot be read."""

    def __init__(self, damage: Damage):
        super().__init__(" ".join(damage))
        self.damage = damage


BLOCK = 2048  # ids of one record: 4 KB, read in about 15 us wherever it lies
# Changes when these files do, or what a reader or a vocabulary makes of the same text.
FORMAT = 2

_READER_ERRORS = (RuntimeError, IndexError, ValueError)  # as ArrayRecord reports damage

# Below this a stream is held in memory, where a row costs no read and needs no worker process.
_IN_MEMORY_TOKENS = 32 << 20


@dataclasses.dataclass(frozen=True)
class Shard:
    """One finished shard, as its json file holds it."""

    name: str
    documents: int
    tokens: int
    targets: int
    file_bytes: int
    sha256: str
    index_sha256: str
    unusable: list[list[str]]  # (where, why)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def index_files(directory: Path, shard: str, pairs: bool) -> list[Path]:
    """Returns the arrays of a shard, in the order of their digest."""
    kinds = ("ends", "inputs", "counts") if pairs else ("ends", "counts")
    return [directory / f"{shard}.{kind}.npy" for kind in kinds]


def index_digest(directory: Path, shard: str, pairs: bool) -> str:
    digest = hashlib.sha256()
    for path in index_files(directory, shard, pairs):
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def id_type(size: int) -> np.dtype:
    return np.dtype("<u2" if size <= 1 << 16 else "<i4")


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


class Cache:
    """A complete cache, read at random. It pickles to worker processes."""

    def __init__(self, directory: Path):
        """Opens the cache and checks that all of it is there.

        Raises:
          DataError: it is absent, of another format, or a file is missing or has another size.
        """
        self.directory = directory
        manifest = read_json(directory / "manifest.json")
        if manifest is None or manifest.get("format") != FORMAT:
            raise DataError(
                f"{directory} is not a cache of this version: remove it, prepare again."
            )
        self.manifest = manifest
        self.shards = [Shard(**shard) for shard in manifest["shards"]]
        self.pairs = "inputs" in manifest["features"]
        self._check_files()
        self.vocabulary_size: int = manifest["vocabulary_size"]
        self.digest: str = manifest["digest"]
        self.starts = np.cumsum([0, *(shard.tokens for shard in self.shards)])
        self.tokens = int(self.starts[-1])
        self.documents = sum(shard.documents for shard in self.shards)
        self.in_memory = self.tokens <= _IN_MEMORY_TOKENS
        if self.in_memory:
            self.verify()
        self._reset()

    def _reset(self) -> None:
        self._readers: dict[int, Any] = {}
        self._stream: np.ndarray | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_readers", "_stream", "_lock")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _check_files(self) -> None:
        for shard in self.shards:
            path = self.directory / f"{shard.name}.tokens"
            size = path.stat().st_size if path.is_file() else None
            if size != shard.file_bytes:
                found = "is missing" if size is None else f"has {size:,} bytes"
                raise DataError(
                    f"{path} {found}, where {shard.file_bytes:,} bytes were written: the tokenised "
                    f"data is damaged. Copy it again, or remove {self.directory} and prepare it "
                    "again with `python -m launch.prepare`."
                )
            for path in index_files(self.directory, shard.name, self.pairs):
                if not path.is_file():
                    raise DataError(
                        f"{path} is missing: the tokenised data is damaged. Copy it again, or "
                        f"remove {self.directory} and prepare it again."
                    )

    def verify(self) -> None:
        """Reads every shard and compares its digest; raises DataError for one that differs."""
        for shard in self.shards:
            path = self.directory / f"{shard.name}.tokens"
            if sha256_of(path) != shard.sha256:
                raise DataError(
                    f"{path} is damaged: its SHA-256 is not the one noted when it was written. "
                    f"Remove {self.directory} and prepare it again."
                )
            if index_digest(self.directory, shard.name, self.pairs) != shard.index_sha256:
                raise DataError(
                    f"{self.directory / shard.name}.*.npy: an index is damaged, its SHA-256 is not "
                    f"the one noted when it was written. Remove {self.directory} and prepare it "
                    "again."
                )

    def left_out(self, most: int = 20) -> list[str]:
        """Says how many documents could not be used, and which and why; nothing when all could."""
        unusable = [entry for shard in self.shards for entry in shard.unusable]
        if not unusable:
            return []
        lines = [f"left out: {len(unusable):,} of {self.documents + len(unusable):,} documents"]
        lines += [f"  {where}: {why}" for where, why in unusable[:most]]
        if len(unusable) > most:
            lines.append(f"  and {len(unusable) - most:,} more, all in manifest.json")
        return lines

    def array(self, kind: str) -> list[np.ndarray]:
        """Returns the `ends`, `inputs` or `counts` arrays of all shards, mapped from disk."""
        try:
            return [
                np.load(self.directory / f"{shard.name}.{kind}.npy", mmap_mode="r")
                for shard in self.shards
            ]
        except (OSError, ValueError) as error:
            raise DataError(f"{self.directory}: an index is damaged ({error}).") from error

    def counts(self) -> np.ndarray:
        """Returns int64 [V]: how often each id occurs in the targets."""
        return np.sum(self.array("counts"), axis=0)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the ids [start, stop) of the whole stream, int32.

        Raises:
          DamagedRecord: a record cannot be read; names the first.
        """
        if self.in_memory:
            with self._lock:
                if self._stream is None:
                    self._stream = self._read_records(0, self.tokens)
            return self._stream[start:stop].astype(np.int32)
        with self._lock:
            return self._read_records(start, stop).astype(np.int32)

    def place(self, position: int) -> str:
        """Says in which record a position of the stream lies."""
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self._record(shard, (position - int(self.starts[shard])) // BLOCK)

    def _record(self, shard: int, number: int) -> str:
        path = self.directory / f"{self.shards[shard].name}.tokens"
        last = min((number + 1) * BLOCK, self.shards[shard].tokens) - 1
        return f"{path} record {number} (tokens {number * BLOCK}..{last})"

    def _read_records(self, start: int, stop: int) -> np.ndarray:
        parts = []
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        for shard in range(first, len(self.shards)):
            begin, end = int(self.starts[shard]), int(self.starts[shard + 1])
            if begin >= stop:
                break
            low, high = max(start, begin) - begin, min(stop, end) - begin
            if low < high:
                parts.append(self._read_shard(shard, low, high))
        dtype = id_type(self.vocabulary_size)
        return np.concatenate(parts) if parts else np.zeros(0, dtype)

    def _read_shard(self, shard: int, low: int, high: int) -> np.ndarray:
        first, last = low // BLOCK, (high - 1) // BLOCK
        try:
            records = self._reader(shard).read(list(range(first, last + 1)))
        except _READER_ERRORS:
            records = [self._read_one(shard, number) for number in range(first, last + 1)]
        ids = np.frombuffer(b"".join(records), id_type(self.vocabulary_size))
        return ids[low - first * BLOCK : high - first * BLOCK]

    def _reader(self, shard: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        if shard not in self._readers:
            path = self.directory / f"{self.shards[shard].name}.tokens"
            random_access = "readahead_buffer_size:0,max_parallelism:0"
            self._readers[shard] = ArrayRecordReader(str(path), random_access)
        return self._readers[shard]

    def _read_one(self, shard: int, number: int) -> bytes:
        try:
            return self._reader(shard).read([number])[0]
        except _READER_ERRORS as error:
            why = f"cannot be read ({error})"
            raise DamagedRecord(Damage(self._record(shard, number), why)) from error
