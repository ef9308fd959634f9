"""Tokenised data on disk: one stream of ids in ArrayRecord shards, with the ends of its documents.

A cache is a directory that appears under its name only when it is complete:
  manifest.json             what it was made from; sizes and digests of every file; sealed
  SHARD.tokens              ArrayRecord; record n holds the ids [n*2048, (n+1)*2048) of the shard
  SHARD.ends.npy            int64 [documents], where each document ends in the shard
  SHARD.inputs.npy          int32 [documents], how many of its ids are its inputs; only for pairs
  SHARD.counts.npy          int64 [V], how often each id occurs in targets
Where it lies follows from the settings that decide its content (`moe.data.cache_paths`); the
manifest holds the fingerprint of what was read and the digest of the vocabulary, and neither may
differ from those of a run. Damage to any of these files is noticed before a token is
used: records have check sums, everything else is compared with its digest.
`moe.data.cache.build` makes it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moe.data.cache.shard import FORMAT, parse_manifest, sha256_of
from trainlib import commands
from trainlib.errors import DataError, shown
from trainlib.seal import unsealed
from trainlib.untrusted_files import open_regular, read_small

MANIFEST = "manifest.json"


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

_READER_ERRORS = (RuntimeError, IndexError, ValueError)  # as ArrayRecord reports damage

# Below this a stream is held in memory, where a row costs no read and needs no worker process.
_IN_MEMORY_TOKENS = 32 << 20


def is_complete(directory: Path) -> bool:
    """Whether a cache lies there, be it damaged."""
    return os.path.lexists(directory / MANIFEST)


def id_type(size: int) -> np.dtype:
    return np.dtype("<u2" if size <= 1 << 16 else "<i4")


class Cache:
    """A complete cache, read at random. It pickles to worker processes."""

    def __init__(self, directory: Path):
        """Opens the cache and checks that all of it is there.

        Raises:
          DataError: it is absent, of another format, or a file is missing or has another size.
        """
        self.directory = directory
        what = shown(directory / MANIFEST)
        content = read_small(directory / MANIFEST, error=DataError)
        try:
            manifest = unsealed(content, what, DataError)
        except DataError as error:
            raise DataError(f"{error} {self._remedy()}") from None
        if manifest.get("format") != FORMAT:
            raise DataError(f"{shown(directory)} is not a cache of this version. {self._remedy()}")
        self.manifest, self.shards = parse_manifest(manifest, what)
        self.pairs = "inputs" in manifest["features"]
        self._checked: set[str] = set()  # indices whose digest was compared
        self._check_files()
        self.vocabulary_size: int = manifest["vocabulary_size"]
        self.digest: str = manifest["digest"]
        self.starts = np.cumsum([0, *(shard.tokens for shard in self.shards)])
        self.tokens = int(self.starts[-1])
        self.documents = sum(shard.documents for shard in self.shards)
        self.unknown = sum(shard.unknown for shard in self.shards)
        self.in_memory = self.tokens <= _IN_MEMORY_TOKENS
        if self.in_memory:
            self.verify()
        self._reset()

    def _reset(self) -> None:
        self._readers: dict[int, Any] = {}
        self._stream: np.ndarray | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        of_process = ("_readers", "_stream", "_lock")
        return {key: value for key, value in self.__dict__.items() if key not in of_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _remedy(self) -> str:
        return (
            f"Copy it again, or remove {shown(self.directory)}: a small source is tokenised again "
            f"at the next start, a large one with `{commands.name('prepare')}`."
        )

    def _check_files(self) -> None:
        """Compares the size of every file, which costs no read."""
        for shard in self.shards:
            for path, size in shard.files(self.directory):
                try:
                    with open_regular(path, error=DataError) as file:
                        there = os.fstat(file.fileno()).st_size
                except DataError as error:
                    if os.path.lexists(path):
                        raise
                    raise DataError(
                        f"{shown(path)} is missing: the tokenised data is damaged. {self._remedy()}"
                    ) from error
                if there != size:
                    raise DataError(
                        f"{shown(path)} has {there:,} bytes, where {size:,} bytes were written: "
                        f"the tokenised data is damaged. {self._remedy()}"
                    )

    def verify(self) -> None:
        """Reads every file and compares its digest; raises DataError for one that differs."""
        for shard in self.shards:
            self._compare(self.directory / f"{shard.name}.tokens", shard.sha256)
        for kind in self.shards[0].index:
            self.check_index(kind, again=True)

    def check_index(self, kind: str, again: bool = False) -> None:
        """Compares the digests of the `ends`, `inputs` or `counts` of all shards, once.

        Raises:
          DataError: one differs: a document that ends elsewhere would be read as another.
        """
        if kind in self._checked and not again:
            return
        for shard in self.shards:
            self._compare(self.directory / f"{shard.name}.{kind}.npy", shard.index[kind].sha256)
        self._checked.add(kind)

    def _compare(self, path: Path, digest: str) -> None:
        if sha256_of(path) != digest:
            raise DataError(
                f"{shown(path)} is damaged: its SHA-256 is not the one noted when it was written. "
                f"{self._remedy()}"
            )

    def left_out(self, most: int = 20) -> list[str]:
        """Says how many documents could not be used, and which and why; nothing when all could."""
        count = sum(shard.unusable_count for shard in self.shards)
        if not count:
            return []
        named = [entry for shard in self.shards for entry in shard.unusable]
        lines = [f"left out: {count:,} of {self.documents + count:,} documents"]
        lines += [f"  {where}: {why}" for where, why in named[:most]]
        if count > most:
            lines.append(f"  and {count - most:,} more (manifest.json names {len(named):,})")
        return lines

    def array(self, kind: str) -> list[np.ndarray]:
        """The `ends`, `inputs` or `counts` arrays of all shards, mapped from disk.

        Raises:
          DataError: one is damaged.
        """
        self.check_index(kind)
        size = {"counts": lambda shard: self.vocabulary_size}.get(kind, lambda s: s.documents)
        arrays = []
        for shard in self.shards:
            path = self.directory / f"{shard.name}.{kind}.npy"
            try:
                array = np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{shown(path)} is damaged ({error}).") from error
            if array.shape != (size(shard),) or array.dtype not in (np.int64, np.int32):
                raise DataError(f"{shown(path)} is damaged: it holds another array than it should.")
            arrays.append(array)
        return arrays

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
                    self.verify()  # it may have been replaced since it was opened
            return self._stream[start:stop].astype(np.int32)
        with self._lock:
            return self._read_records(start, stop).astype(np.int32)

    def describe(self, position: int) -> str:
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
        if len(ids) < high - first * BLOCK:
            raise DamagedRecord(Damage(self._record(shard, last), "is shorter than it was written"))
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
