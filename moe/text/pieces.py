"""Text cut into pieces of about one size; where it is cut depends on the text around alone.

A piece begins at the first line that begins at or after a multiple of the size. Where a line is
longer than a piece, it is cut between words, and where there are none, between letters: text
without line ends takes no longer than any other.
"""

from __future__ import annotations

import re
from typing import BinaryIO

_SPACE = re.compile(rb"[ \t\r\v\f]")


class Pieces:
    """The pieces of one file, read where they lie; of a packed file, in order."""

    def __init__(self, file: BinaryIO, size: int):
        """Args: a file that is open, and bytes of a piece."""
        self.file, self.size, self.begin, self.buffer = file, size, 0, b""

    def read(self, start: int) -> tuple[int, bytes] | None:
        """(where it begins, its bytes) of the piece of a multiple of the size; None behind the end.

        It is empty where the line that the piece before ends with leaves nothing of it.
        """
        before = min(start, 1)
        data = self._bytes(start - before, start + 2 * self.size + 4)
        if start and len(data) <= before:
            return None
        first, last = (_cut(data, before + k * self.size, self.size) for k in (0, 1))
        return start - before + first, data[first:last]

    def _bytes(self, start: int, stop: int) -> bytes:
        if not self.begin <= start <= self.begin + len(self.buffer):
            self.file.seek(start)
            self.buffer = b""
        self.buffer, self.begin = self.buffer[max(start - self.begin, 0) :], start
        if (missing := stop - start - len(self.buffer)) > 0:
            self.buffer += self.file.read(missing)
        return self.buffer[: stop - start]


def _cut(data: bytes, at: int, size: int) -> int:
    """Where in `data` the piece begins whose multiple is `at`; less than `size` further."""
    if at == 0 or at >= len(data):
        return min(at, len(data))
    end = data.find(b"\n", at - 1, at + size - 1)
    if end >= 0:
        return end + 1
    if space := _SPACE.search(data, at - 1, at + size - 1):
        return space.end()
    letters = range(at, min(at + 4, len(data)))
    return next((i for i in letters if data[i] & 0xC0 != 0x80), at)


def divide(text: str, fraction: float) -> int | None:
    """Where a text is divided into a first part and an end of about a fraction, neither of them
    blank: at a line, else between words, else between letters. None where that cannot be.
    """
    first = len(text) - len(text.lstrip())
    last = len(text.rstrip())
    if last - first < 2:
        return None
    aim = min(max(last - max(round(fraction * (last - first)), 1), first + 1), last - 1)
    reach = max(aim - max((last - first) // 8, 1024), first)
    ends = (text.rfind(mark, reach, aim) + 1 for mark in "\n ")
    return next(filter(None, ends), aim)
