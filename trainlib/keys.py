"""What a configuration key takes, type and range, declared once beside its default and its meaning.

A schema's entry is a pair (default, meaning). Made by `key`, it also carries a kind: `whole(1)`,
`number(0, below=1)`, `choice("sgd", "adamw")`, `text()`, `many(whole(1))`, `pair(whole(1))`,
`either(whole(1), pair(whole(1)))`. A field of a dataclass has it in its annotation,
`heads: Annotated[int, whole(1)] = 8`; where none is declared it follows from the type. Words of a
command line (`read`) and values of JSON and Python (`take`) pass the same kind, which says in
plain words what it allows.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import numbers
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from trainlib.errors import ConfigError, nearest, shown

INT32 = 2**31 - 1  # counters and shapes on devices are 32-bit numbers
EXACT = 2**53  # whole numbers up to here survive JSON readers that know floats only
FLOAT32 = 3e38  # what is computed with a number is computed in float32
MOST_TEXT, MOST_WORDS, MOST_ENTRIES = 4_096, 200_000, 10_000

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HALF = re.compile(r"[\ud800-\udfff]")


class Unfit(ValueError):
    """A value that a kind does not take; the message is a reason beyond the range, or empty."""


class Kind:
    """What a key takes."""

    @property
    def words(self) -> str:
        """What is allowed, as the end of a sentence "it takes ..."."""
        raise NotImplementedError

    def take(self, value: Any) -> Any:
        """The value in the type of the key: tuples for lists, floats for whole numbers.

        Raises:
          Unfit: it is of another type, or outside the range.
        """
        raise NotImplementedError

    def read(self, text: str) -> Any:
        """The value that words of a command line mean.

        Raises:
          Unfit: as `take`.
        """
        return self.take(text)


@dataclasses.dataclass(frozen=True)
class Number(Kind):
    """A finite number of a range; `also` lists (value, what it stands for) outside of it."""

    integral: bool
    low: float
    high: float
    above: bool = False  # whether `low` itself is left out
    below: bool = False  # whether `high` itself is left out
    also: tuple[tuple[float, str], ...] = ()

    @property
    def words(self) -> str:
        parts = []  # the ends that mean something to a reader, not those of 32 bits
        if self.low not in (-EXACT, -FLOAT32):
            parts.append(f" {'above' if self.above else 'from'} {_figure(self.low)}")
        if self.high not in (EXACT, INT32, FLOAT32):
            plain = parts and not (self.above or self.below)
            word = "below" if self.below else "to" if plain else "up to"
            parts.append(f" {word} {_figure(self.high)}")
        joined = (" and" if self.above or self.below else "").join(parts)
        noun = "a whole number" if self.integral else "a number" if parts else "a finite number"
        special = "".join(f", or {_figure(value)} for {what}" for value, what in self.also)
        return f"{noun}{joined}{special}"

    def take(self, value: Any) -> Any:
        # NumPy's numbers are registered as these too; `bool` is one by inheritance only.
        wanted = numbers.Integral if self.integral else numbers.Real
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise Unfit
        given: Any = value
        try:
            number: float = int(given) if self.integral else float(given)
        except (OverflowError, ValueError):
            raise Unfit from None
        over = number > self.low if self.above else number >= self.low
        under = number < self.high if self.below else number <= self.high  # not for NaN
        if not (over and under) and number not in [special for special, _ in self.also]:
            finite = abs(number) < math.inf
            reason = "it is too large" if number > self.high else ""
            raise Unfit(reason if finite else "it is not finite")
        return number

    def read(self, text: str) -> Any:
        try:
            return self.take(int(text.replace("_", "")) if self.integral else float(text))
        except ValueError as refused:
            raise refused if isinstance(refused, Unfit) else Unfit() from None


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


@dataclasses.dataclass(frozen=True)
class Switch(Kind):
    """`true` or `false`."""

    @property
    def words(self) -> str:
        return "true or false"

    def take(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise Unfit
        return value

    def read(self, text: str) -> bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise Unfit
        return words[text.lower()]


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """One word, or one whole number, of a list."""

    options: tuple[str | int, ...]

    @property
    def words(self) -> str:
        listed = [str(option) or "'' (nothing)" for option in self.options]
        return f"one of {', '.join(listed)}" if len(listed) > 1 else f"only {listed[0]}"

    def take(self, value: Any) -> str | int:
        plain = isinstance(value, str | int) and not isinstance(value, bool)
        if not plain or value not in self.options:
            raise Unfit
        return value

    def read(self, text: str) -> str | int:
        matches = [option for option in self.options if str(option) == text]
        return self.take(matches[0] if matches else text)


@dataclasses.dataclass(frozen=True)
class Text(Kind):
    """Text of one line; `check` raises `Unfit` for what is no text of its kind."""

    least: int
    most: int
    noun: str
    check: Callable[[str], None] | None = None

    @property
    def words(self) -> str:
        if self.least:
            return f"{self.noun} of {self.least} to {self.most:,} characters"
        return f"{self.noun} of at most {self.most:,} characters, which may be empty"

    def take(self, value: Any) -> str:
        if not isinstance(value, str):
            raise Unfit
        if len(value) > self.most:
            raise Unfit(f"it has {len(value):,} characters")
        if not value and self.least:
            raise Unfit("it is empty")
        if _CONTROL.search(value):
            raise Unfit("it holds control characters")
        if _HALF.search(value):
            raise Unfit("it is not UTF-8")
        if self.check:
            self.check(value)
        return str(value)


@dataclasses.dataclass(frozen=True)
class Many(Kind):
    """A tuple of one kind of entry, of any length in `lengths` (empty: any up to `most`)."""

    item: Kind
    lengths: tuple[int, ...] = ()
    most: int = MOST_ENTRIES

    @property
    def words(self) -> str:
        counted = " or ".join(map(str, self.lengths))
        entries = f" of {counted} entries" if self.lengths else ""
        return f"a list{entries}, each {self.item.words}"

    def take(self, value: Any) -> tuple:
        if not isinstance(value, list | tuple):
            raise Unfit
        if len(value) > self.most or (self.lengths and len(value) not in self.lengths):
            raise Unfit(f"it has {len(value):,} entries")
        return tuple(_entry(self.item.take, entry, n) for n, entry in enumerate(value, 1))

    def read(self, text: str) -> tuple:
        if text.startswith(("(", "[")):
            try:
                return self.take(_literal(text))
            except SyntaxError:
                if not isinstance(self.item, Text):  # a regular expression may begin with (
                    raise Unfit("the brackets hold no list") from None
        words = _words(text)
        return self.take(tuple(_entry(self.item.read, word, n) for n, word in enumerate(words, 1)))


@dataclasses.dataclass(frozen=True)
class Fixed(Kind):
    """A tuple with a kind for each position."""

    items: tuple[Kind, ...]

    @property
    def words(self) -> str:
        noun = "a pair" if len(self.items) == 2 else f"{len(self.items)} entries"
        if len(set(self.items)) == 1:
            return f"{noun}, each {self.items[0].words}"
        return f"{noun} ({'; '.join(item.words for item in self.items)})"

    def take(self, value: Any) -> tuple:
        if not isinstance(value, list | tuple) or len(value) != len(self.items):
            raise Unfit
        places = enumerate(zip(self.items, value, strict=True), 1)
        return tuple(_entry(item.take, entry, n) for n, (item, entry) in places)

    def read(self, text: str) -> tuple:
        if text.startswith(("(", "[")):
            try:
                return self.take(_literal(text))
            except SyntaxError:
                raise Unfit("the brackets hold no list") from None
        words = _words(text)
        if len(words) != len(self.items):
            raise Unfit
        places = enumerate(zip(self.items, words, strict=True), 1)
        return tuple(_entry(item.read, word, n) for n, (item, word) in places)


@dataclasses.dataclass(frozen=True)
class Either(Kind):
    """What one of several kinds takes, the first that does."""

    options: tuple[Kind, ...]

    @property
    def words(self) -> str:
        return ", or ".join(option.words for option in self.options)

    def _first(self, ways: list[Callable[[Any], Any]], value: Any) -> Any:
        for way in ways:
            try:
                return way(value)
            except Unfit:
                continue
        raise Unfit

    def take(self, value: Any) -> Any:
        return self._first([option.take for option in self.options], value)

    def read(self, text: str) -> Any:
        return self._first([option.read for option in self.options], text)


def _entry(way: Callable[[Any], Any], value: Any, position: int) -> Any:
    try:
        return way(value)
    except Unfit as refused:
        reason = f" ({refused})" if str(refused) else ""
        raise Unfit(f"entry {position} is {brief(value, 60)}{reason}") from None


def _literal(text: str) -> Any:
    """The Python list or tuple in brackets; a single value in brackets is a list of it.

    Raises:
      SyntaxError: it is none. Unfit: it is too long.
    """
    if len(text) > MOST_WORDS:
        raise Unfit(f"it has {len(text):,} characters")
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise SyntaxError from None
    return value if isinstance(value, list | tuple) else (value,)


def _words(text: str) -> list[str]:
    """Words between commas, without quotation marks around them."""
    if len(text) > MOST_WORDS:
        raise Unfit(f"it has {len(text):,} characters")
    words = [word for word in (word.strip() for word in text.split(",")) if word]
    quoted = [len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" for word in words]
    return [word[1:-1] if marks else word for word, marks in zip(words, quoted, strict=True)]


# How a schema says what a key takes.


def whole(low: int = -EXACT, high: int = INT32, *, also: Mapping[int, str] = {}) -> Kind:
    """A whole number from `low` to `high`; `also`: values outside with what they stand for."""
    return Number(True, low, high, also=tuple(also.items()))


def number(
    low: float = -FLOAT32,
    high: float = FLOAT32,
    *,
    above: float | None = None,
    below: float | None = None,
    also: Mapping[float, str] = {},
) -> Kind:
    """A finite number from `low` to `high`, `above` and `below` being ends that are left out."""
    low, high = (low if above is None else above), (high if below is None else below)
    return Number(False, low, high, above is not None, below is not None, tuple(also.items()))


def switch() -> Kind:
    """`true` or `false`."""
    return Switch()


def choice(*options: str | int) -> Kind:
    """One of these words or whole numbers."""
    return Choice(options)


def text(least: int = 0, most: int = MOST_TEXT, noun: str = "text") -> Kind:
    """Text of `least` to `most` characters, none of which steers a terminal."""
    return Text(least, most, noun)


def many(item: Kind, *lengths: int, most: int = MOST_ENTRIES) -> Kind:
    """A tuple of `item`s, of any of the lengths if there are some, else of up to `most`."""
    return Many(item, lengths, most)


def pair(first: Kind, second: Kind | None = None) -> Kind:
    """Two values; the second of the kind of the first unless another is given."""
    return Fixed((first, second or first))


def either(*options: Kind) -> Kind:
    """What any of these takes."""
    return Either(options)


class Key(tuple):
    """An entry of a schema: the pair (default, meaning), and the `kind` of its values."""

    kind: Kind


def key(default: Any, meaning: str, kind: Kind) -> Key:
    """An entry of a schema."""
    entry = Key((default, meaning))
    entry.kind = kind
    return entry


def kind_of(entry: tuple[Any, str]) -> Kind:
    """What a key takes: as declared, or any value of the type of its default."""
    return entry.kind if isinstance(entry, Key) else like(entry[0])


_ANYTHING = Either((whole(high=EXACT), number(), text(), switch()))


def like(value: Any) -> Kind:
    """The kind of all values of the type of this one."""
    if isinstance(value, bool):
        return switch()
    if isinstance(value, int):
        return whole(high=EXACT)
    if isinstance(value, float):
        return number()
    if isinstance(value, tuple | list):
        return many(like(value[0]) if len(value) else either(_ANYTHING, many(_ANYTHING)))
    return text()


def of_hint(hint: Any) -> Kind | None:
    """What a field takes, from its annotation; None for what is no plain data."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return next((extra for extra in arguments[1:] if isinstance(extra, Kind)), None)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in map(of_hint, arguments) if kind]
        return either(*kinds) if len(kinds) > 1 else kinds[0] if kinds else None
    if typing.get_origin(hint) is tuple:
        places = [item for item in arguments if item is not ...]
        items = [kind for kind in map(of_hint, places) if kind]
        if not items or len(items) != len(places):
            return None
        return many(items[0]) if ... in arguments else Fixed(tuple(items))
    plain: dict[Any, Kind] = {int: whole(), float: number(), bool: switch(), str: text()}
    return plain.get(hint)


@functools.cache
def of_fields(cls: type) -> dict[str, Kind]:
    """Field of a dataclass -> what it takes; fields of no plain data are left out."""
    hints = typing.get_type_hints(cls, include_extras=True)
    kinds = {field.name: of_hint(hints[field.name]) for field in dataclasses.fields(cls)}
    return {name: kind for name, kind in kinds.items() if kind}


def check_fields(made: Any, section: str) -> None:
    """Refuses values of a dataclass outside of what its fields are declared to take.

    Raises:
      ConfigError: names the key below `section`, its value and what is allowed.
    """
    for name, kind in of_fields(type(made)).items():
        value = getattr(made, name)
        if value is not None:
            fit(f"{section}.{name}", value, kind)


def fit(
    name: str,
    value: Any,
    kind: Kind,
    where: str = "",
    *,
    words: bool = False,
    present: Any = None,
) -> Any:
    """The value as the kind takes it.

    Args:
      name: the key.
      value: any value; text of a command line if `words`.
      kind: what the key takes.
      where: file or flag that it came from.
      words: read it as words of a command line.
      present: the value that the key has, to be named.

    Raises:
      ConfigError: in one paragraph: where, key, value, nearest, allowed.
    """
    try:
        return kind.read(value) if words else kind.take(value)
    except Unfit as refused:
        close = nearest(str(value), map(str, kind.options)) if isinstance(kind, Choice) else ""
        source = f"{shown(where)}: " if where else ""
        reason = f": {refused}" if str(refused) else ""
        figure = words and re.fullmatch(r"[-+]?[\d_.]{1,40}(e[-+]?\d{1,9})?", value)
        given = value if figure else brief(value)
        now = "" if present is None else f" It is {brief(present, 60)} now."
        raise ConfigError(
            f"{source}{shown(name)}={given} is not allowed{reason}. {close}It takes "
            f"{kind.words}.{now}"
        ) from None


_BRIEF = reprlib.Repr()
_BRIEF.maxtuple = _BRIEF.maxlist = 12
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlong = 3, 200, 200, 60


def brief(value: Any, most: int = 200) -> str:
    """A value for a message: one line of bounded length, whatever it is."""
    try:
        return shown(_BRIEF.repr(value), most)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        return f"a very large {type(value).__name__}"
