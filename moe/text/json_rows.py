"""Rows of JSON files: one object a line, or one array of objects; plain or gzip.

Training, fine-tuning and prediction all read them here. A byte-order mark at the start of a file is
not content; a repeated key, half a surrogate pair, or a line above the limit makes a row unusable,
and the row says so.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from moe.text.files import BOM, GZIP_ERRORS, damaged_gzip
from trainlib.errors import DataError, shown
from trainlib.untrusted_files import open_regular, parse_json

# A line above this is refused: it would be a mistake, and has to fit memory several times.
LARGEST_BYTES = 64 << 20

_SHOWN = 20  # bad lines that an error lists
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_Taken = TypeVar("_Taken")


class Bad(Exception):
    """A record that cannot be used; the text says why."""


def too_long() -> str:
    """Why a line is refused."""
    return f"has a line above {LARGEST_BYTES >> 20} MiB: divide it"


def parse_row(line: bytes, offset: int = 0) -> dict[str, Any]:
    """The object of a line.

    Args:
      line: its bytes.
      offset: where it stands in its file.

    Raises:
      Bad: it is none, or holds what is no text.
    """
    if len(line) > LARGEST_BYTES:
        raise Bad(too_long())
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise Bad(not_utf8(line, error, offset)) from None
    try:
        row = parse_json(line, "", error=DataError)
    except DataError as error:
        hint = ""
        if line.strip() == b"{":
            hint = ": each object must stand on one line, or the file hold an array of objects"
        raise Bad(str(error).strip().removesuffix(".") + hint) from None
    if not isinstance(row, dict):
        raise Bad("is no JSON object")
    return row


def not_utf8(content: bytes, error: UnicodeDecodeError, offset: int) -> str:
    """Why bytes are no text; `offset` is where they stand in their file."""
    byte, where = content[error.start], offset + error.start
    return f"is not UTF-8 (byte 0x{byte:02x} at offset {where} of the file)"


def open_rows(path: Path) -> io.BufferedReader:
    """Opens a regular file, unpacked when it is gzip.

    Raises:
      OSError: it is not there.
      DataError: it is a pipe, a device or a folder.
    """
    os.stat(path)
    file = open_regular(path, follow=True, error=DataError)
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed:
        return file
    unpacked: Any = gzip.GzipFile(fileobj=file)  # a raw stream in all but its type
    return io.BufferedReader(unpacked)


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | Bad | None]]:
    """(position, row) of each JSON line of a file, or of each element of a JSON array; a row that
    cannot be used is a `Bad` that says why, a blank line is None.

    Raises:
      OSError: it is not there.
      DataError: it is no regular file, a damaged gzip file, or an array that breaks off.
    """
    try:
        with open_rows(path) as file:
            if array_at_start(file):
                yield from ((f"element {n}", row) for n, row in array_rows(file, path))
                return
            for number, (offset, line) in enumerate(lines(file, 0), start=1):
                row: dict[str, Any] | Bad | None = None
                if line.removeprefix(BOM if number == 1 else b"").strip():
                    try:
                        row = parse_row(line, offset)
                    except Bad as error:
                        row = error
                yield f"line {number}", row
    except GZIP_ERRORS as error:
        raise damaged_gzip(path, error) from None


def input_rows(
    path: Path, take: Callable[[dict[str, Any]], _Taken], wanted: str, advice: str
) -> Iterator[_Taken | None]:
    """What `take` makes of each row of the file that `--input` names; None of a blank line.

    Every bad row is read past and said at the end, so that all can be mended at once: what was
    yielded counts for nothing before the iterator is exhausted.

    Args:
      path: of the file.
      take: of a row; raises `Bad` where it cannot be used.
      wanted: what to give in place of a file that cannot be read.
      advice: what every line has to be, a sentence.

    Raises:
      DataError: the file cannot be read, has no row, or rows that cannot be used; names them.
    """
    bad, lines_, rows = [], 0, 0
    try:
        for where, row in read_rows(path):
            lines_ += 1
            rows += row is not None
            try:
                if isinstance(row, Bad):
                    raise row
                yield None if row is None else take(row)
            except Bad as error:
                bad.append(f"{where} {error}")
    except OSError as error:
        raise DataError(
            f"--input={shown(path)} cannot be read ({error.strerror}). {wanted}"
        ) from None
    if bad or not rows:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        what = f"rows that cannot be used ({len(bad)} of {lines_}): {'; '.join(bad[:_SHOWN])}{more}"
        raise DataError(f"--input={shown(path)} has {what if bad else 'no line'}. {advice}")


def text_lines(path: Path) -> Iterator[tuple[int, str | Bad]]:
    """(number from 1, line without its end, or why it cannot be used) of a file of text.

    Raises:
      OSError: it is not there.
      DataError: it is no regular file, or a damaged gzip file.
    """
    try:
        with open_rows(path) as file:
            for number, (offset, line) in enumerate(lines(file, 0), start=1):
                if len(line) > LARGEST_BYTES:
                    yield number, Bad(too_long())
                    continue
                try:
                    text = line.removeprefix(BOM if number == 1 else b"").decode()
                except UnicodeDecodeError as error:
                    yield number, Bad(not_utf8(line, error, offset))
                else:
                    yield number, text.rstrip("\r\n")
    except GZIP_ERRORS as error:
        raise damaged_gzip(path, error) from None


def array_at_start(file: io.BufferedReader) -> bool:
    """Whether a file that can be peeked into begins with `[`."""
    return file.peek(64)[:64].removeprefix(BOM).lstrip().startswith(b"[")


def lines(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its end) from the position of a file on; of a line above the limit only so
    much is read that it is known to be too long.
    """
    offset = start
    while line := file.readline(LARGEST_BYTES + 1):
        yield offset, line
        offset += len(line) + skip_line(file, line)


def skip_line(file: BinaryIO, start: bytes) -> int:
    """Reads the rest of a line that starts so; returns how many bytes that were."""
    skipped = 0
    while start and not start.endswith(b"\n"):
        start = file.readline(1 << 20)
        skipped += len(start)
    return skipped


def array_rows(file: BinaryIO, path: Path) -> Iterator[tuple[int, dict[str, Any] | Bad]]:
    """(number from 1, object or why there is none) of a JSON array, one element at a time: memory
    is that of the largest.

    Raises:
      DataError: it is no JSON array to its end: what follows the fault would be lost.
    """
    reader = _Array(file, path)
    for number, text in enumerate(reader.elements(), start=1):
        try:
            yield number, parse_row(text.encode("utf-8", "surrogatepass"))
        except Bad as error:
            yield number, error


class _Array:
    """Cuts a JSON array into the texts of its elements; `at` is a position in `text`, what was
    read.
    """

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.text, self.at, self.ended = file, path, "", 0, False
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.scan = json.JSONDecoder().raw_decode
        self.count = 0

    def elements(self) -> Iterator[str]:
        """The text of each element, in order."""
        self.letter()  # the bracket
        self.at += 1
        after = "]" if self.letter() == "]" else ","
        self.at += after == "]"
        while after == ",":
            self.letter()
            end = self.element()
            self.count += 1
            yield self.text[self.at : end]
            self.at = end
            after = self.letter()
            self.at += 1
        if after != "]":
            raise self.broken("breaks off or lacks a comma")
        if self.letter():
            raise self.broken("goes on behind its end")

    def letter(self) -> str:
        """The next letter that is no space, which becomes the position; "" at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            assert space is not None  # it matches nothing at all, too
            self.at = space.end()
            if self.at < len(self.text) or not self.more(_CHUNK):
                return self.text[self.at : self.at + 1]

    def element(self) -> int:
        """Where the element at the position ends.

        What is not whole is read on twice as far each time, so that all tries together cost no more
        than reading the element twice.
        """
        size = _CHUNK
        while True:
            try:
                _, end = self.scan(self.text, self.at)
                if end < len(self.text) or self.ended:  # a number could go on
                    return end
            except RecursionError:
                raise self.broken("nests too deeply") from None
            except ValueError as error:
                if self.ended or len(self.text) - self.at > LARGEST_BYTES:
                    raise self.broken(f"is no JSON ({shown(str(error), 80)})") from None
            self.more(size)
            size *= 2

    def more(self, size: int) -> bool:
        """Reads on and forgets what lies before the position; False at the end of the file."""
        data = self.file.read(size)
        self.ended = not data
        try:
            text = self.decoder.decode(data, final=self.ended)
        except UnicodeDecodeError:
            raise self.broken("holds bytes that are not UTF-8") from None
        self.text, self.at = self.text[self.at :] + text, 0
        return not self.ended

    def broken(self, why: str) -> DataError:
        return DataError(
            f"{shown(self.path)} begins as a JSON array and {why} (after {self.count:,} elements): "
            "the rest would be lost. Repair it, or give one object a line."
        )
