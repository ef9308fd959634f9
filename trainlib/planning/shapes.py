"""Arguments of a function as one types them: `bf16[8,128],f32[],mask=pred[8,128]`.

    type[d,d,...]        an array as HLO writes it, bf16[4096,4096]; f32[] is a scalar
    8, 0.5, true, none   a value of Python, known when the function is traced
    (a, b)               a tuple of any of these
    {w: a, b: c}         a dictionary
    name=...             an argument by its name; those by place come first

Types: f16 f32 f64 bf16, s4 s8 s16 s32 s64 (or i8 ...), u4 u8 u16 u32 u64, pred (or bool), c64 c128,
f8e4m3fn, f8e5m2 and the other f8..., f4e2m1fn, and `key` for a key of random numbers. The names of
NumPy, float32 or bfloat16, do as well. Those of 64 bits are for JAX_ENABLE_X64=1; without it JAX
would take half as many, unasked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trainlib.errors import ConfigError, nearest, shown

_FLOAT8 = ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
TYPES = {
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"{letter}{bits}": f"int{bits}" for letter in "si" for bits in (4, 8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (4, 8, 16, 32, 64)},
    **{f"f8{kind}": f"float8_{kind}" for kind in _FLOAT8},
    **{"bf16": "bfloat16", "pred": "bool", "f4e2m1fn": "float4_e2m1fn"},
    **{"c64": "complex64", "c128": "complex128"},
}
NAMES = {*TYPES.values()}
VALUES = {"true": True, "false": False, "none": None}
MOST, DEEPEST = 10_000, 32  # characters, and values in one another
_TOKEN = re.compile(r"\s*([\w.+-]+|[\[\](){},:=])")


def read(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by place and by name; arrays are `jax.ShapeDtypeStruct`s.

    Raises:
      ConfigError: what cannot be read, where, and how it is written.
    """
    return _Reader(text).arguments()


def bound(
    function: Callable[..., Any], positional: list[Any], named: dict[str, Any]
) -> tuple[Callable[..., Any], list[Any]]:
    """A function of arrays alone, and their shapes: values of Python are bound.

    A function whose arguments are all arrays by place is returned as it is, so that a jitted one
    keeps what it was jitted with.
    """
    leaves, tree = jax.tree.flatten((positional, named))
    places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]
    if not named and len(places) == len(leaves):
        return function, positional

    def called(*arrays: jax.Array) -> Any:
        values = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            values[place] = array
        by_place, by_name = jax.tree.unflatten(tree, values)
        return function(*by_place, **by_name)

    called.__name__ = getattr(function, "__name__", "function")
    return called, [leaves[place] for place in places]


class _Reader:
    """Reads from left to right."""

    def __init__(self, text: str):
        self.text = text
        self.tokens: list[tuple[str, int]] = []
        at = 0
        if len(text) > MOST:
            raise ConfigError(f"--shapes has {len(text):,} characters, more than {MOST:,}.")
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if not match:
                raise self._error(at, "is not expected")
            self.tokens.append((match[1], match.start(1)))
            at = match.end()
        self.next = self.depth = 0

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        positional: list[Any] = []
        named: dict[str, Any] = {}
        while self.next < len(self.tokens):
            word, at = self.tokens[self.next]
            if self._peek(1) == "=":
                if not word.isidentifier() or word in named:
                    raise self._error(at, "is no new name of an argument")
                self.next += 2
                named[word] = self._value()
            elif named:
                raise self._error(at, "has no name, and stands behind one that has")
            else:
                positional.append(self._value())
            if self.next < len(self.tokens):
                self._take(",")
        return positional, named

    # ------------------------------------------------------------------ parts
    def _value(self) -> Any:
        word, at = self._word()
        if word == "(":
            return tuple(self._list(")", self._value))
        if word == "{":
            return self._dictionary()
        if self._peek() == "[":
            self.next += 1
            shape = tuple(self._list("]", self._size))
            if word == "key":
                return jax.ShapeDtypeStruct(shape, jax.random.key(0).dtype)
            return jax.ShapeDtypeStruct(shape, self._type(word, at))
        return self._constant(word, at)

    def _list(self, end: str, item: Callable[[], Any]) -> list[Any]:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._error(self.tokens[self.next - 1][1], f"is nested more than {DEEPEST} deep")
        found = []
        while self._peek() != end:
            found.append(item())
            if self._peek() != end:
                self._take(",")
        self.next, self.depth = self.next + 1, self.depth - 1
        return found

    def _dictionary(self) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def entry() -> None:
            word, at = self._word()
            if word in found:
                raise self._error(at, "is a key for the second time")
            self._take(":")
            found[word] = self._value()

        self._list("}", entry)
        return found

    def _size(self) -> int:
        word, at = self._word()
        if not word.isdecimal() or int(word) >= 2**31:
            raise self._error(at, "is no size of a dimension")
        return int(word)

    def _type(self, word: str, at: int) -> Any:
        name = TYPES.get(word, word)
        if name not in NAMES:
            raise self._error(at, "is no type", nearest(word, [*TYPES, *NAMES]))
        if jax.dtypes.canonicalize_dtype(name) != name:
            narrow = jax.dtypes.canonicalize_dtype(name).name
            raise self._error(
                at, f"would be {narrow}: JAX narrows it, unless JAX_ENABLE_X64=1 is set"
            )
        return jnp.dtype(name)

    def _constant(self, word: str, at: int) -> Any:
        if word.lower() in VALUES:
            return VALUES[word.lower()]
        for kind in (int, float):
            try:
                return kind(word)
            except ValueError:
                continue
        raise self._error(at, "is neither an array nor a value")

    # ------------------------------------------------------------------ tokens
    def _peek(self, ahead: int = 0) -> str:
        place = self.next + ahead
        return self.tokens[place][0] if place < len(self.tokens) else ""

    def _word(self) -> tuple[str, int]:
        if self.next >= len(self.tokens):
            raise self._error(len(self.text), "ends too early")
        self.next += 1
        return self.tokens[self.next - 1]

    def _take(self, wanted: str) -> None:
        if self._peek() != wanted:
            if self.next >= len(self.tokens):
                raise self._error(len(self.text), f"ends where '{wanted}' or an end should stand")
            raise self._error(self.tokens[self.next][1], f"stands where '{wanted}' should")
        self.next += 1

    def _error(self, at: int, what: str, close: str = "") -> ConfigError:
        rest = shown(self.text[at : at + 40])
        place = f"'{rest}' (character {at + 1}) {what}" if rest else f"it {what}"
        return ConfigError(
            f"--shapes={shown(self.text)}: {place}. {close}Write the arguments one after the "
            "other, arrays as TYPE[SIZE,SIZE]: bf16[4096,4096],f32[],mask=pred[8,128]; "
            "(a,b) and {name:a} hold several."
        )
