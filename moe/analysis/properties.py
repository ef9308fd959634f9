"""The properties of tokens that an analysis compares routing with."""

from __future__ import annotations

import numpy as np

from moe.analysis import texts, words
from moe.analysis.record import Record
from moe.analysis.statistics import Property
from moe.analysis.texts import Texts, TokenFacts
from moe.text.vocabulary import Vocabulary

CLASS, WORD, TOKEN, LABEL = "word class", "word", "token", "language or source"
PREDICTED = "class of the token to predict"
TENTH = "tenth of the sequence"
_SEVERAL = 0.01  # share of the letters from which a second script counts


def of_stack(record: Record, stack: str, text: Texts, vocabulary: Vocabulary) -> list[Property]:
    """The properties of the real tokens of a stack, each [N], rows one after the other.

    They are from the simplest to the most detailed; "word" and "token" are for lists rather than
    for figures, since they have so many values.
    """
    own = record.stacks[stack]
    real, facts = own.real, text.read[stack]
    positions = positions_of(own.segments)[real]
    tokens = own.tokens[real]
    ids, codes = np.unique(tokens, return_inverse=True)
    found = [
        Property(CLASS, facts.kind[real], words.CLASSES),
        Property("place in the word", facts.place[real], texts.PLACES),
        Property("first letter of the word", facts.letter[real], _readable(text.letters)),
        Property("token number, even or odd", tokens % 2, ("even", "odd")),
        Property("position, even or odd", positions % 2, ("even", "odd")),
        Property(TENTH, _tenths(own.segments)[real], [f"{n * 10} %" for n in range(10)]),
        Property("position", positions, [str(n) for n in range(own.tokens.shape[1])]),
        Property(WORD, facts.word[real], _readable(text.words)),
        Property(TOKEN, codes, [_token(int(n), vocabulary, stack) for n in ids]),
    ]
    if stack == "decoder":
        found.insert(1, Property(PREDICTED, text.predicted.kind[real], words.CLASSES))
    found += _labels(record, real) + _scripts(facts, text, real)
    return found


def positions_of(segments: np.ndarray) -> np.ndarray:
    """int64 [R, L]: the place of each token in its segment, from 0."""
    places = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
    begins = np.ones(segments.shape, bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)


def _tenths(segments: np.ndarray) -> np.ndarray:
    """int64 [R, L]: which tenth of its row a token stands in; slots fill from left to right."""
    length = segments.shape[1]
    return np.broadcast_to(np.arange(length) * 10 // length, segments.shape)


def _labels(record: Record, real: np.ndarray) -> list[Property]:
    if len(record.labels) < 2:
        return []
    codes = np.broadcast_to(record.label[:, None], real.shape)[real]
    return [Property(LABEL, codes, record.labels, of_rows=True)]


def _scripts(facts: TokenFacts, text: Texts, real: np.ndarray) -> list[Property]:
    """The script of the word of each token, where there are several."""
    codes = facts.script[real]
    none = text.scripts.index("") if "" in text.scripts else -1
    letters = codes[(codes >= 0) & (codes != none)]
    shares = np.bincount(letters, minlength=len(text.scripts)) / max(len(letters), 1)
    if (shares >= _SEVERAL).sum() < 2:
        return []
    return [Property("script", np.where(codes == none, -1, codes), text.scripts)]


def _readable(names: tuple[str, ...]) -> list[str]:
    return [texts.readable(name) for name in names]


def _token(number: int, vocabulary: Vocabulary, stack: str) -> str:
    if number == 0 and stack == "decoder":
        return "<start>"
    return texts.shown_token(number, vocabulary)
