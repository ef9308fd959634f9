"""Documents as text, from sources that need no TensorFlow: pydoc, folders of text, jsonl.

A reader cuts its documents into shards, so that preparation can go on after a stop and run in
several processes; which documents a shard holds depends on the source alone.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from moe.text.files import BOM, GZIP_ERRORS, Found, TextFile, damaged_gzip, find
from moe.text.fingerprint import digest, files_digest, unreadable
from moe.text.json_rows import (
    Bad,
    array_at_start,
    array_rows,
    lines,
    not_utf8,
    open_rows,
    parse_row,
    skip_line,
)
from moe.text.pieces import Pieces, divide
from trainlib import paths
from trainlib.errors import DataError, shown

# Files are read in pieces of about this size; of jsonl, each the lines that begin in it.
_PIECE_BYTES = 64 << 10

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

    # One line for each kind of file that lies there and is not read.
    @property
    def passed_over(self) -> Sequence[str]: ...

    def fingerprint(self) -> str | None:
        """Returns what changes when the source does, or None when it is not here."""
        ...

    def documents(self, shard: int, shards: int) -> Iterator[Document]: ...


def held_out(key: str, fraction: float) -> bool:
    """Whether the document belongs to the held-out part: a fixed property of its key."""
    return _draw(key) < fraction * 2**64


def _draw(key: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:8])


class Pydoc:
    """The documentation topics that Python itself ships, as `help("topics")` shows them.

    79 topics, 0.4 MB of English prose in Python 3.11. A paragraph that several topics share is
    kept once, so that the held-out topics share none with the training ones.
    """

    name, features, size_bytes, most_shards = "pydoc", ("targets",), 500_000, 1
    passed_over = ()

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
        return digest(self._texts())

    def documents(self, shard: int, shards: int) -> Iterator[Document]:
        for number, (name, text) in enumerate(self._texts().items()):
            if number % shards == shard:
                yield Document(f"pydoc topic {name}", {"targets": text})


class _Division(NamedTuple):
    """Which documents are held out against their own draw, so that neither part is empty."""

    forced: dict[str, bool]  # key -> whether it is held out
    only: str = ""  # key of the only document that can be used


class _Files:
    """The files of a folder (`text_files` says which), or one file; cut into pieces whose ends
    depend on nothing but the files. A fixed part of the documents is held out, at least one."""

    most_shards = 1024

    def __init__(self, kind: str, path: str, fraction: float, holdout: bool):
        self.name, self.kind = f"{kind}:{path}", kind
        self.path = paths.resolve(path, f"data.source ({kind}:PATH)")
        self.fraction, self.holdout = fraction, holdout
        self.notes: Path | None = None  # see `files_digest`

    @functools.cached_property
    def _found(self) -> Found:
        try:
            return find(self.kind, self.path)
        except OSError as error:
            raise unreadable(self.name, error) from error

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self._found.files)

    @property
    def passed_over(self) -> Sequence[str]:
        return self._found.passed_over

    def fingerprint(self) -> str | None:
        for known in ("_found", "_division"):  # files may have come or gone
            self.__dict__.pop(known, None)
        names = [file.name for file in self._found.files]
        return files_digest(self.name, self.path, names, self.notes)

    def _pieces(self, shard: int, shards: int) -> Iterator[tuple[TextFile, int | None]]:
        """Yields (file, start) of the shard's pieces; None is all of a file that has to be read
        from its beginning.
        """
        pieces = (
            (file, start)
            for file in self._found.files
            for start in (
                [None] if file.packed or file.array else range(0, max(file.size, 1), _PIECE_BYTES)
            )
        )
        return itertools.islice(pieces, shard, None, shards)

    def _where(self, file: TextFile, place: str) -> str:
        return f"{shown(self.path / file.name)} {place}"

    def _keyed(
        self, shard: int, shards: int, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, Document]]:
        """Yields (key, document) of the documents whose key is wanted."""
        raise NotImplementedError

    def _divided(self, document: Document) -> Document:
        """This part's share of the only document."""
        raise NotImplementedError

    @functools.cached_property
    def _division(self) -> _Division:
        """Reads documents until both parts have one that can be used."""
        if not self.fraction:
            return _Division({})
        drawn: dict[str, int] = {}
        sides: set[bool] = set()
        for key, document in self._keyed(0, 1, lambda key: True):
            if document.unusable:
                continue
            sides.add(held_out(key, self.fraction))
            if len(sides) == 2:
                return _Division({})
            draw = _draw(key)
            if len(drawn) < 2:
                drawn[key] = draw
            else:  # the lowest and the highest are all that can be needed
                low, high = sorted(drawn, key=drawn.__getitem__)
                low = key if draw < drawn[low] else low
                high = key if draw > drawn[high] else high
                drawn = {k: draw if k == key else drawn[k] for k in (low, high)}
        if len(drawn) < 2:
            return _Division({}, only=next(iter(drawn), ""))
        low, high = sorted(drawn, key=drawn.__getitem__)
        return _Division({low: True} if sides == {False} else {high: False})

    def documents(self, shard: int, shards: int) -> Iterator[Document]:
        division = self._division

        def wanted(key: str) -> bool:
            if key == division.only:
                return True
            return division.forced.get(key, held_out(key, self.fraction)) == self.holdout

        for key, document in self._keyed(shard, shards, wanted):
            yield self._divided(document) if key == division.only else document

    def _indivisible(self, what: str) -> DataError:
        return DataError(
            f"{self.name} has {what}, so that nothing can be held out of it. Train without an "
            "evaluation (--config.data.holdout=0), or give it more."
        )


class TextFolder(_Files):
    """UTF-8 text. A document is a piece of a file, up to the end of the line at about 64 KiB. Of a
    source with one piece, the end is held out."""

    features = ("targets",)

    def __init__(self, path: str, fraction: float, holdout: bool):
        super().__init__("text", path, fraction, holdout)

    def _keyed(
        self, shard: int, shards: int, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, Document]]:
        for file, start in self._pieces(shard, shards):
            starts = itertools.count(0, _PIECE_BYTES) if start is None else [start]
            path = self.path / file.name
            try:
                with open_rows(path) as opened:
                    pieces = Pieces(opened, _PIECE_BYTES)
                    for start in starts:
                        key = f"{file.name} {start}"
                        if not file.packed and not wanted(key):
                            continue
                        if (piece := pieces.read(start)) is None:
                            break
                        if wanted(key) and (document := self._document(file, start, *piece)):
                            yield key, document
            except GZIP_ERRORS as error:
                raise damaged_gzip(path, error) from None

    def _document(self, file: TextFile, start: int, begin: int, content: bytes) -> Document | None:
        where = self._where(file, f"offset {start}")
        try:
            text = content.removeprefix(b"" if begin else BOM).decode()
        except UnicodeDecodeError as error:
            skipped = begin or len(BOM) * content.startswith(BOM)
            return Document(where, {}, not_utf8(content[skipped - begin :], error, skipped))
        if 5 * text.count("\0") > 2 * len(text):  # a few are letters like others
            return Document(where, {}, "is half NUL bytes or more, as UTF-16 and binary files are")
        if text.strip():
            return Document(where, {"targets": text})
        if content or not start:  # else its only line began in a piece before
            return Document(where, {}, "is empty")
        return None

    def _divided(self, document: Document) -> Document:
        text = document.text["targets"]
        place = divide(text, self.fraction)
        if place is None:
            raise self._indivisible("one letter")
        part = text[place:] if self.holdout else text[:place]
        return document._replace(text={"targets": part})


class Jsonl(_Files):
    """JSON objects, one a line or in an array. A document is an object; blank lines are none."""

    def __init__(self, path: str, text: str, inputs: str, fraction: float, holdout: bool):
        super().__init__("jsonl", path, fraction, holdout)
        self.fields = {**({"inputs": inputs} if inputs else {}), "targets": text}
        self.features = tuple(self.fields)

    def _keyed(
        self, shard: int, shards: int, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, Document]]:
        last, read_to = "", 0  # no line begins before, whatever piece it lies in
        for file, start in self._pieces(shard, shards):
            path = self.path / file.name
            try:
                if start is None:
                    yield from self._whole(file, path, wanted)
                    continue
                if file.name != last:
                    last, read_to = file.name, 0
                if not file.size and not self.holdout:
                    yield f"{file.name} 0", Document(shown(path), {}, "is empty")
                if read_to >= start + _PIECE_BYTES:
                    continue
                with open_rows(path) as opened:
                    opened.seek(max(start - 1, 0))
                    read_to = start and start - 1 + skip_line(opened, b" ")
                    for offset, line in lines(opened, read_to):
                        if (read_to := offset) >= start + _PIECE_BYTES:
                            break
                        key = f"{file.name} {offset}"
                        if wanted(key) and (document := self._line(file, offset, line)):
                            yield key, document
                    else:
                        read_to = 1 << 62  # no line begins behind the last
            except GZIP_ERRORS as error:
                raise damaged_gzip(path, error) from None

    def _whole(
        self, file: TextFile, path: Path, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, Document]]:
        with open_rows(path) as opened:
            if array_at_start(opened):
                for number, row in array_rows(opened, path):
                    if wanted(key := f"{file.name} {number}"):
                        yield key, self._document(self._where(file, f"element {number}"), row)
                return
            for offset, line in lines(opened, 0):
                key = f"{file.name} {offset}"
                if wanted(key) and (document := self._line(file, offset, line)):
                    yield key, document

    def _line(self, file: TextFile, offset: int, line: bytes) -> Document | None:
        if not line.removeprefix(b"" if offset else BOM).strip():
            return None
        try:
            row = parse_row(line, offset)
        except Bad as error:
            row = error
        return self._document(self._where(file, f"offset {offset}"), row)

    def _document(self, where: str, row: dict[str, Any] | Bad) -> Document:
        if isinstance(row, Bad):
            return Document(where, {}, str(row))
        text = {}
        for feature, field in self.fields.items():
            value = row.get(field)
            if not isinstance(value, str) or not value.strip():
                return Document(where, {}, f"has no text in the field '{field}'")
            text[feature] = value
        return Document(where, text)

    def _divided(self, document: Document) -> Document:
        raise self._indivisible("one record that can be used")
