"""The elements of a large JSON file one by one, in the memory of one element.

`json.load` holds all of a file at once, its text and every object in it. Here the file is decoded
piece by piece: each element of an array that is a member of the outermost object is handed over and
forgotten.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from trainlib.errors import DataError, shown
from trainlib.untrusted_files import MIB

_PIECE = MIB // 4
_MOST_ELEMENT = 64 * MIB  # characters
_SPACE = re.compile(r"[ \t\r\n]*")
# A syntax error this close to the end of what is decoded may be that end: "-Infinity", "\ud83d".
_CUT = 16


class Element(NamedTuple):
    """An element of an array, or a member that is no array.

    Attributes:
      member: the name under which it, or its array, stands in the outermost object.
      number: its position in the array; None for a member that is no array.
      value: what it is.
    """

    member: str
    number: int | None
    value: Any


def elements(file: BinaryIO, what: str) -> Iterator[Element]:
    """Yields what the outermost object of a JSON file holds, in the order of the file.

    An empty array yields one element, whose number is -1 and whose value is None. Infinity and NaN
    are read as Python reads them.

    Args:
      file: UTF-8, with or without a byte-order mark.
      what: names the file in messages.

    Raises:
      DataError: it is not JSON, is not one object, nests too deeply, names a member or a key twice,
        or has an element of more than 64 Mi characters.
    """
    text = _Text(file, what)
    text.expect("{", "one object { ... }")
    seen: set[str] = set()
    more = text.peek() != "}"
    if not more:
        text.expect("}", "the end of the object")
    while more:
        name = text.value()
        if not isinstance(name, str):
            raise text.wrong(f"{shown(repr(name), 40)} stands where a name was expected")
        if name in seen:
            raise DataError(f"{what} names {shown(name, 80)!r} twice.")
        seen.add(name)
        text.expect(":", "a colon")
        if text.peek() == "[":
            yield from _array(text, name)
        else:
            yield Element(name, None, text.value())
        more = text.either(",", "}")
    if text.peek():
        raise text.wrong("more follows after the outermost object")


def _array(text: _Text, name: str) -> Iterator[Element]:
    text.expect("[", "an array")
    if text.peek() == "]":
        text.expect("]", "the end of the array")
        yield Element(name, -1, None)
        return
    number = 0
    while True:
        yield Element(name, number, text.value())
        number += 1
        if not text.either(",", "]"):
            return


class _Text:
    """The text of a file from some character on, as much of it as is looked at."""

    def __init__(self, file: BinaryIO, what: str):
        self._file, self._what = file, what
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("strict")
        self._scan = json.JSONDecoder(object_pairs_hook=self._once).raw_decode
        self._text, self._at, self._before = "", 0, 0
        self._ended = False

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{self._what} names {shown(twice, 80)!r} twice in one object.")
        return found

    def wrong(self, reason: str) -> DataError:
        """The refusal of what stands here."""
        near = shown(self._text[self._at : self._at + 40], 60)
        return DataError(
            f"{self._what} is not JSON that can be read: {reason}, at character "
            f"{self._before + self._at + 1:,}, where {near!r} stands."
            if near
            else f"{self._what} is not JSON that can be read: {reason}, and the file ends at "
            f"character {self._before + self._at:,}: it is cut off or empty."
        )

    def _more(self, size: int) -> bool:
        """Decodes about `size` more bytes, and forgets what was read; False at the end."""
        while not self._ended:
            data = self._file.read(size)
            self._ended = not data
            try:
                new = self._decoder.decode(data, final=self._ended)
            except UnicodeDecodeError as error:
                raise DataError(f"{self._what} is not UTF-8 text: {error.reason}.") from None
            if new:
                self._before += self._at
                self._text, self._at = self._text[self._at :] + new, 0
                return True
        return False

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_PIECE):
                return ""

    def expect(self, letter: str, what: str) -> None:
        """Passes over one character, which must be this one."""
        if self.peek() != letter:
            raise self.wrong(f"{what} was expected")
        self._at += 1

    def either(self, goes_on: str, ends: str) -> bool:
        """Passes over one of two characters; whether it was the first."""
        letter = self.peek()
        if letter not in (goes_on, ends) or not letter:
            raise self.wrong(f"'{goes_on}' or '{ends}' was expected")
        self._at += 1
        return letter == goes_on

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        size = _PIECE
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _CUT
                if not cut or not self._grow(size):
                    self._at = min(error.pos, len(self._text))
                    raise self.wrong(error.msg) from None
            except RecursionError:
                raise self.wrong("it nests too deeply") from None
            except ValueError as error:  # a whole number of thousands of digits
                raise self.wrong(shown(str(error), 100)) from None
            else:
                # "12", "1" before a "." or before "e-" at the end of what is decoded may go on.
                if end < len(self._text) - 2 or not self._grow(size):
                    self._at = end
                    return value
            size *= 2

    def _grow(self, size: int) -> bool:
        if len(self._text) - self._at > _MOST_ELEMENT:
            raise self.wrong(f"one element has more than {_MOST_ELEMENT:,} characters")
        return self._more(size)
