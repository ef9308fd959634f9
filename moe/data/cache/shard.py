"""What is written down of each shard of a cache, and of the whole: types and bounds.

A manifest may come from elsewhere, and damage may have passed over it: every field is checked, no
name in it becomes a path, and what it says of sizes is compared with the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trainlib.errors import DataError, shown

# Changes when the files of a cache do, or what a reader or a vocabulary makes of the same text.
FORMAT = 3

KINDS = ("ends", "inputs", "counts")  # of the arrays of a shard, in the order of their digest
MOST_NAMED = 100  # unusable documents that a shard names; the others are counted
MOST_SHARDS = 100_000

_NAME = re.compile(r"\d{5,6}-of-\d{5,6}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Index(NamedTuple):
    """One array file of a shard."""

    file_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """One finished shard, as its json file holds it.

    Attributes:
      name: NUMBER-of-COUNT; what its files begin with.
      documents: how many can be used.
      tokens: ids of all features.
      targets: ids of the targets.
      unknown: ids that stand for what the vocabulary does not have, in all features.
      file_bytes: of the file of its ids.
      sha256: of that file.
      index: `ends`, `inputs`, `counts` -> their files.
      unusable_count: documents that cannot be used.
      unusable: (where, why) of the first of them.
    """

    name: str
    documents: int
    tokens: int
    targets: int
    unknown: int
    file_bytes: int
    sha256: str
    index: Mapping[str, Index]
    unusable_count: int
    unusable: list[list[str]]

    def files(self, directory: Path) -> Iterator[tuple[Path, int]]:
        """(path, bytes) of each of its files."""
        yield directory / f"{self.name}.tokens", self.file_bytes
        for kind, file in self.index.items():
            yield directory / f"{self.name}.{kind}.npy", file.file_bytes


def sha256_of(path: Path) -> str:
    """Digest of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_name(number: int, count: int) -> str:
    """Name of a shard."""
    return f"{number:05d}-of-{count:05d}"


def digest_of(shards: list[Shard]) -> str:
    """Digest of all that a cache holds."""
    parts = [d for s in shards for d in (s.sha256, *(file.sha256 for file in s.index.values()))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def parse_shard(value: Any, what: str) -> Shard:
    """A shard from JSON.

    Raises:
      DataError: it is not what `write_shard` writes.
    """
    try:
        fields = dict(value)
        index = {kind: _index(fields["index"][kind]) for kind in KINDS if kind in fields["index"]}
        if len(index) != len(fields["index"]) or not _NAME.fullmatch(fields["name"]):
            raise ValueError("an index or a name")
        _digest(fields["sha256"])
        for key in ("documents", "tokens", "targets", "unknown", "file_bytes", "unusable_count"):
            _count(fields[key])
        if not all(isinstance(text, str) for entry in fields["unusable"] for text in entry):
            raise ValueError("unusable")
        fields |= {"index": index, "unusable": [list(pair) for pair in fields["unusable"]]}
        if any(len(pair) != 2 for pair in fields["unusable"]):
            raise ValueError("unusable")
        return Shard(**fields)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _refused(what, error) from None


def parse_manifest(value: dict[str, Any], what: str) -> tuple[dict[str, Any], list[Shard]]:
    """(manifest, its shards) of an unsealed manifest of this format.

    Raises:
      DataError: it is not what `moe.data.cache.build` writes.
    """
    try:
        given = value["shards"]
        if not isinstance(given, list) or not 0 < len(given) <= MOST_SHARDS:
            raise ValueError("shards")
        shards = [parse_shard(shard, what) for shard in given]
        if [s.name for s in shards] != [shard_name(n, len(shards)) for n in range(len(shards))]:
            raise ValueError("names of shards")
        pairs = "inputs" in value["features"]
        wanted = set(KINDS) if pairs else set(KINDS) - {"inputs"}
        if any(set(shard.index) != wanted for shard in shards):
            raise ValueError("features")
        if not 0 < _count(value["vocabulary_size"]) < 2**31:
            raise ValueError("vocabulary_size")
        if sum(shard.tokens for shard in shards) >= 2**62 or value["digest"] != digest_of(shards):
            raise ValueError("digest")
        for key in ("fingerprint", "vocabulary", "vocabulary_name", "definitions", "source"):
            if not isinstance(value[key], str):
                raise ValueError(key)
    except (TypeError, ValueError, KeyError) as error:
        raise _refused(what, error) from None
    return value, shards


def _index(value: Any) -> Index:
    size, digest = value
    return Index(_count(size), _digest(digest))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{shown(repr(value), 60)} where a count is needed")
    return value


def _digest(value: Any) -> str:
    if not _DIGEST.fullmatch(value):
        raise ValueError("a digest")
    return value


def _refused(what: str, error: Exception) -> DataError:
    return DataError(
        f"{what} is not what was written here ({shown(str(error), 80)}). Copy the directory again, "
        "or remove it and prepare the data again."
    )
