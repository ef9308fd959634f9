"""Documents as text, from sources that need no TensorFlow: pydoc, folders of text, jsonl.

A reader cuts its documents into shards, so that preparation can go on after a stop and run in
several processes; which documents a shard holds depends on the source alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from trainlib.errors import DataError

# A line above this is refused: it would be a mistake, and has to fit memory several times.
_LARGEST_BYTES = 64 << 20

# Files are read in pieces of about this size, each the lines that begin in it.
_PIECE_BYTES = 64 << 10

# Up to so many bytes, all tell whether a source has changed; of more, blocks at even distances.
_WHOLE_BYTES = 32 << 20
_SAMPLES, _SAMPLE_BYTES = 2048, 4096

# Of the topics of the Python documentation, by bytes about one in ten.
_PYDOC_HOLDOUT = 0.1


class Document(NamedTuple):
    """One document, or why it cannot be used."""

    where: str  # file and offset, for messages
    text: dict[str, Any]  # feature -> text, or ids when the source has tokenised already
    unusable: str = ""


class Reader(Protocol):
    """A source of documents; it pickles to worker processes."""

    name: str

    # "targets" alone is running text; with "inputs" each document is a pair.
    @property
    def features(self) -> tuple[str, ...]: ...

    # About how much there is; decides the number of shards and whether it is prepared at first use.
    @property
    def size_bytes(self) -> int: ...

    @property
    def most_shards(self) -> int: ...

    def fingerprint(self) -> str | None:
        """Returns what changes when the source does, or None when it is not here."""
        ...

    def documents(self, shard: int, shards: int) -> Iterator[Document]: ...


def unreadable(name: str, error: OSError) -> DataError:
    """The error for a source that the system does not let us read."""
    return DataError(f"{name} cannot be read ({error}). Repair or remove what is named.")


def files_digest(source: str, folder: Path, sizes: list[tuple[str, int]]) -> str | None:
    """Returns a digest of the names, sizes and bytes of files, None where there are none.

    Of many bytes only samples are read, so that it takes seconds at any size. A copy elsewhere has
    the same, whatever its times.

    Args:
      source: what they are, for messages.
      folder: where they lie.
      sizes: (path in the folder, bytes) of each.

    Raises:
      DataError: a file cannot be read.
    """
    total, content, begin = sum(size for _, size in sizes), hashlib.sha256(), 0
    distance = total // _SAMPLES
    try:
        for name, size in sizes:
            if total <= _WHOLE_BYTES:
                content.update((folder / name).read_bytes())
            elif places := range(-begin % distance, size, distance):
                with (folder / name).open("rb") as file:
                    for place in places:
                        file.seek(place)
                        content.update(file.read(_SAMPLE_BYTES))
            begin += size
    except OSError as error:
        raise unreadable(source, error) from error
    return _digest(sizes, content.hexdigest()) if sizes else None


def held_out(key: str, fraction: float) -> bool:
    """Whether the document belongs to the held-out part: a fixed property of its key."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
    return number < fraction * 2**64


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class Pydoc:
    """The documentation topics that Python itself ships, as `help("topics")` shows them.

    79 topics, 0.4 MB of English prose in Python 3.11. A paragraph that several topics share is
    kept once, so that the held-out topics share none with the training ones.
    """

    name, features, size_bytes, most_shards = "pydoc", ("targets",), 500_000, 1

    def __init__(self, holdout: bool):
        self.holdout = holdout

    def _texts(self) -> dict[str, str]:
        from pydoc_data.topics import topics

        seen: set[str] = set()
        texts = {}
        for name in sorted(topics):
            paragraphs = []
            for paragraph in re.split(r"\n[ \t]*\n", topics[name]):
                words = " ".join(paragraph.split())
                if words and words not in seen:
                    seen.add(words)
                    paragraphs.append(paragraph.strip("\n"))
            if paragraphs and held_out(f"pydoc {name}", _PYDOC_HOLDOUT) == self.holdout:
                texts[name] = "\n\n".join(paragraphs) + "\n\n"
        return texts

    def fingerprint(self) -> str | None:
        return _digest(self._texts())

    def documents(self, shard: int, shards: int) -> Iterator[Document]:
        for number, (name, text) in enumerate(self._texts().items()):
            if number % shards == shard:
                yield Document(f"pydoc topic {name}", {"targets": text})


class _Files:
    """The files with one suffix in a folder (at any depth), in the order of their paths, or one
    file; cut into pieces whose ends depend on nothing but the files."""

    most_shards = 1024

    def __init__(self, kind: str, path: str, fraction: float, holdout: bool):
        self.name, self.kind = f"{kind}:{path}", kind
        self.path, self.fraction, self.holdout = Path(path).expanduser(), fraction, holdout

    def _sizes(self) -> list[tuple[str, int]]:
        suffix = {"text": "*.txt", "jsonl": "*.jsonl"}[self.kind]
        if self.path.is_file():
            return [("", self.path.stat().st_size)]
        files = sorted(p for p in self.path.rglob(suffix) if p.is_file())
        return [(p.relative_to(self.path).as_posix(), p.stat().st_size) for p in files]

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self._sizes())

    def fingerprint(self) -> str | None:
        return files_digest(self.name, self.path, self._sizes())

    def _pieces(self, shard: int, shards: int) -> Iterator[tuple[str, int, int]]:
        """Yields (file, start, file size) of the shard's pieces."""
        pieces = (
            (name, start, size)
            for name, size in self._sizes()
            for start in range(0, max(size, 1), _PIECE_BYTES)
        )
        return itertools.islice(pieces, shard, None, shards)

    def _lines(self, name: str, start: int) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, line with its end) for the lines that begin in the piece at `start`.

        Of a line above the limit only so much is kept that it is known to be too long.
        """
        with (self.path / name).open("rb") as file:
            if start:
                file.seek(start - 1)
                _skip_line(file, file.readline(_LARGEST_BYTES))
            while (offset := file.tell()) < start + _PIECE_BYTES:
                line = file.readline(_LARGEST_BYTES + 1)
                if not line:
                    return
                _skip_line(file, line)
                yield offset, line


def _skip_line(file: BinaryIO, begun: bytes) -> None:
    while begun and not begun.endswith(b"\n"):
        begun = file.readline(_LARGEST_BYTES)


def _decode(content: bytes, offset: int) -> tuple[str, str]:
    """Returns (text, "") or ("", why the bytes cannot be used)."""
    try:
        return content.decode(), ""
    except UnicodeDecodeError as error:
        byte, where = content[error.start], offset + error.start
        return "", f"is not UTF-8 (byte 0x{byte:02x} at offset {where} of the file)"


_TOO_LONG = f"has a line above {_LARGEST_BYTES >> 20} MiB: divide it"


class TextFolder(_Files):
    """UTF-8 text: a folder of *.txt files or one file. A document is a piece of a file, up to the
    end of the line at about 64 KiB."""

    features = ("targets",)

    def __init__(self, path: str, fraction: float, holdout: bool):
        super().__init__("text", path, fraction, holdout)

    def documents(self, shard: int, shards: int) -> Iterator[Document]:
        for name, start, size in self._pieces(shard, shards):
            where = f"{self.path / name} offset {start}"
            if held_out(f"{name} {start}", self.fraction) != self.holdout:
                continue
            lines = list(self._lines(name, start))
            if any(len(line) > _LARGEST_BYTES for _, line in lines):
                yield Document(where, {}, _TOO_LONG)
                continue
            text, reason = _decode(b"".join(line for _, line in lines), lines[0][0] if lines else 0)
            if reason or text.strip():
                yield Document(where, {} if reason else {"targets": text}, reason)
            elif lines or not size:  # else its only line began in a piece before
                yield Document(where, {}, "is empty")


class Jsonl(_Files):
    """One JSON object a line: a folder of *.jsonl files or one file. A document is a line; blank
    lines are none."""

    def __init__(self, path: str, text: str, inputs: str, fraction: float, holdout: bool):
        super().__init__("jsonl", path, fraction, holdout)
        self.fields = {**({"inputs": inputs} if inputs else {}), "targets": text}
        self.features = tuple(self.fields)

    def documents(self, shard: int, shards: int) -> Iterator[Document]:
        for name, start, size in self._pieces(shard, shards):
            if not size and not self.holdout:
                yield Document(str(self.path / name), {}, "is empty")
            for offset, line in self._lines(name, start):
                if held_out(f"{name} {offset}", self.fraction) == self.holdout and line.strip():
                    text, reason = self._fields(offset, line)
                    yield Document(f"{self.path / name} offset {offset}", text, reason)

    def _fields(self, offset: int, line: bytes) -> tuple[dict[str, Any], str]:
        if len(line) > _LARGEST_BYTES:
            return {}, _TOO_LONG
        content, reason = _decode(line, offset)
        if reason:
            return {}, reason
        try:
            given = json.loads(content)
        except (ValueError, RecursionError) as error:
            return {}, f"is not JSON ({error})"
        text = {}
        for feature, field in self.fields.items():
            value = given.get(field) if isinstance(given, dict) else None
            if not isinstance(value, str) or not value.strip():
                return {}, f"has no text in the field '{field}'"
            text[feature] = value
        return text, ""
