"""The text that rows of tokens stand for, and what each token is part of.

Span corruption takes a text apart: the encoder reads it with sentinels for hidden spans, the
decoder reads the sentinels with the spans. `original` puts both together again, so that a word that
was cut by a span is known as that word on both sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moe.analysis import words
from moe.analysis.record import Record
from moe.text.vocabulary import EOS, UNKNOWN, Vocabulary

PLACES = ("outside of words", "a whole word", "begins a word", "inside of a word", "ends a word")
_OUTSIDE, _WHOLE, _FIRST, _INSIDE, _LAST = range(5)
_NO_WORDS = (words.SPACE, words.PUNCTUATION)


@dataclasses.dataclass
class Names:
    """Names with numbers, in the order in which they are met."""

    numbers: dict[str, int] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.numbers)


@dataclasses.dataclass
class TokenFacts:
    """What is known of the tokens of a stack; int32 [R, L], -1 at padding.

    Attributes:
      kind: number of the class in `moe.analysis.words.CLASSES`.
      word: number of the word, in small letters, or of the sign, in `Texts.words`.
      letter: number of the first letter of that word in `Texts.letters`.
      place: number in `PLACES`.
      script: number of the word's script in `Texts.scripts`.
    """

    kind: np.ndarray
    word: np.ndarray
    letter: np.ndarray
    place: np.ndarray
    script: np.ndarray

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> TokenFacts:
        return cls(*(np.full(shape, -1, np.int32) for _ in dataclasses.fields(cls)))

    def put(self, row: int, places: np.ndarray, facts: np.ndarray) -> None:
        """Sets the facts [5, n] of the tokens of a row."""
        for field, values in zip(dataclasses.fields(self), facts, strict=True):
            getattr(self, field.name)[row, places] = values


class Texts:
    """Reads the tokens of a record as text.

    Args:
      record: of a run.
      vocabulary: of the same run.

    Attributes:
      read: stack -> facts of the tokens that it reads.
      predicted: of the tokens that a decoder has to predict.
      words: names of words.
      letters: names of first letters.
      scripts: names of scripts; "" is none.
    """

    def __init__(self, record: Record, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._words, self._letters, self._scripts = Names(), Names(), Names()
        self._kinds = {name: number for number, name in enumerate(words.CLASSES)}
        self._known: dict[tuple[str, str], tuple[int, int, int, int]] = {}
        shapes = {name: stack.tokens.shape for name, stack in record.stacks.items()}
        self.read = {name: TokenFacts.none(shape) for name, shape in shapes.items()}
        self.predicted = TokenFacts.none(shapes.get("decoder", (0, 0)))
        for row in range(len(record.label)):
            self._row(record, row)

    @property
    def words(self) -> tuple[str, ...]:
        return self._words.names

    @property
    def letters(self) -> tuple[str, ...]:
        return self._letters.names

    @property
    def scripts(self) -> tuple[str, ...]:
        return self._scripts.names

    def _row(self, record: Record, row: int) -> None:
        encoder, decoder = (record.stacks.get(name) for name in ("encoder", "decoder"))
        counted = [stack.segments[row].max() for stack in (encoder, decoder) if stack is not None]
        for segment in range(1, int(max(counted)) + 1):
            places = [
                np.flatnonzero(stack.segments[row] == segment) if stack is not None else _EMPTY
                for stack in (encoder, decoder)
            ]
            inputs = _EMPTY if encoder is None else encoder.tokens[row, places[0]]
            targets = _EMPTY if decoder is None else decoder.targets[row, places[1]]
            for order in original(inputs, targets, self._vocabulary):
                ids = np.concatenate([inputs, targets])[order]
                facts = np.empty((5, len(inputs) + len(targets)), np.int32)
                facts[:, order] = self._facts(ids)
                mine, other = order[order < len(inputs)], order[order >= len(inputs)]
                if len(mine):
                    self.read["encoder"].put(row, places[0][mine], facts[:, mine])
                if len(other):
                    self.predicted.put(row, places[1][other - len(inputs)], facts[:, other])
            if decoder is not None and len(places[1]):
                self._shift(row, places[1])

    def _shift(self, row: int, places: np.ndarray) -> None:
        """A decoder reads at each place what it had to predict at the place before."""
        read = self.read["decoder"]
        for field in dataclasses.fields(TokenFacts):
            before = getattr(self.predicted, field.name)[row, places[:-1]]
            getattr(read, field.name)[row, places[1:]] = before
        read.put(row, places[:1], self._special(words.START)[:, None])

    def _special(self, kind: str) -> np.ndarray:
        name = f"<{kind}>"
        return np.asarray(
            [self._kinds[kind], self._words[name], self._letters[name], _OUTSIDE, self._scripts[""]]
        )

    def _facts(self, ids: np.ndarray) -> np.ndarray:
        """int32 [5, n] of the tokens of one text, in their order."""
        pieces = self._vocabulary.pieces(ids)
        sizes = np.asarray([len(piece) for piece in pieces])
        facts = np.empty((5, len(ids)), np.int32)
        for kind, hit in self._specials(ids, sizes).items():
            if hit.any():
                facts[:, hit] = self._special(kind)[:, None]
        if not sizes.any():
            return facts
        text = b"".join(pieces).decode("utf-8", "surrogateescape")
        parts = words.split(text)
        part_facts = np.asarray([self._part(text[a:b], kind) for a, b, kind in parts])  # [n, 4]
        offsets = np.concatenate([[0], np.cumsum(_byte_sizes(text))])  # of letters
        starts, stops = offsets[[a for a, _, _ in parts]], offsets[[b for _, b, _ in parts]]
        inside = np.flatnonzero(sizes)
        last = np.cumsum(sizes)[inside]  # bytes, as the offsets
        first = last - sizes[inside]
        # A piece such as " the" belongs to its word, not to the blank that it begins with.
        part = np.searchsorted(starts, first, side="right") - 1
        part_of_last = np.searchsorted(starts, last - 1, side="right") - 1
        blank = part_facts[part, 0] == self._kinds[words.SPACE]
        part = np.where(blank & (part_of_last > part), part + 1, part)
        begins, ends = first <= starts[part], last >= stops[part]
        place = np.select([begins & ends, begins, ends], [_WHOLE, _FIRST, _LAST], _INSIDE)
        no_word = np.isin(part_facts[part, 0], [self._kinds[kind] for kind in _NO_WORDS])
        place = np.where(no_word, _OUTSIDE, place)
        kind, word, letter, script = part_facts[part].T
        facts[:, inside] = kind, word, letter, place, script
        return facts

    def _specials(self, ids: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        sentinel = is_sentinel(ids, self._vocabulary)
        none = (sizes == 0) & ~sentinel & (ids != EOS)
        return {words.SENTINEL: sentinel, words.END: ids == EOS, words.UNKNOWN: none}

    def _part(self, text: str, kind: str) -> tuple[int, int, int, int]:
        """Numbers of class, word, first letter and script of a part of a text."""
        known = self._known.get((text, kind))
        if known is None:
            shown = " " if text.isspace() else text.lower()
            found = self._kinds[kind], self._words[shown], self._letters[shown[0]]
            known = self._known[text, kind] = (*found, self._scripts[words.script(text[0])])
        return known


_EMPTY = np.zeros(0, np.int64)


def is_sentinel(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Whether ids are sentinels, bool like `ids`."""
    return (ids >= vocabulary.size - vocabulary.extra_ids) & (ids < vocabulary.size)


def original(inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary) -> list[np.ndarray]:
    """The order in which the tokens of an example stood in its text.

    Args:
      inputs: int [n] of the encoder.
      targets: int [m] of the decoder.
      vocabulary: of the run.

    Returns:
      Numbers of tokens (n + i is target i): all in one array where the targets fill the sentinels
      of the inputs, else the inputs and the targets apart.
    """
    size = len(inputs)
    apart = [np.arange(size), np.arange(size, size + len(targets))]
    gaps = np.flatnonzero(is_sentinel(inputs, vocabulary))
    heads = np.flatnonzero(is_sentinel(targets, vocabulary))
    if not len(gaps) or not len(heads) or heads[0] or not _fills(inputs[gaps], targets[heads]):
        return [part for part in apart if len(part)]
    place = {int(inputs[gap]): int(gap) for gap in gaps}
    key = np.zeros(size + len(targets))
    key[:size] = np.arange(size)
    ends = np.append(heads[1:], len(targets))
    for head, end in zip(heads, ends, strict=True):
        # Behind its sentinel, and before what follows that.
        step = np.arange(1, end - head + 1) / (end - head + 1)
        key[size + head : size + end] = place[int(targets[head])] + step
    if len(targets) and targets[-1] == EOS:
        key[-1] = size
    return [np.argsort(key, kind="stable")]


def _fills(gaps: np.ndarray, heads: np.ndarray) -> bool:
    return len(set(heads.tolist())) == len(heads) and set(heads.tolist()) <= set(gaps.tolist())


def _byte_sizes(text: str) -> np.ndarray:
    """int64 [letters]: bytes of each letter as they were decoded; half letters are one each."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    escaped = (codes >= 0xDC80) & (codes <= 0xDCFF)
    wide = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.where(escaped, 1, wide)


def shown_token(number: int, vocabulary: Vocabulary) -> str:
    """A token as a report writes it: its text, or its meaning in angle brackets."""
    if is_sentinel(np.asarray(number), vocabulary):
        return f"<{vocabulary.size - 1 - number}>"
    special = {0: "<pad>", EOS: "<end>", UNKNOWN: "<unknown>"}.get(number)
    piece = vocabulary.pieces(np.asarray([number]))[0]
    return special or readable(piece.decode("utf-8", "backslashreplace")) or f"<{number}>"


def readable(text: str) -> str:
    """Text with its blanks and line ends made visible."""
    marks = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}
    return "".join(marks.get(letter, letter) for letter in text)


def row_texts(tokens: Sequence[int] | np.ndarray, vocabulary: Vocabulary) -> list[str]:
    """The tokens of a row one by one, for a picture; a decoder's start is `<start>`."""
    return ["<start>" if number == 0 else shown_token(int(number), vocabulary) for number in tokens]
