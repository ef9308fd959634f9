"""Scores of free answers: exact match and token F1 of SQuAD, TriviaQA and ReCoRD, spans of WSC.

All return figures in percent. Definitions: the evaluation scripts of SQuAD v1.1 and v2.0 (arXiv
1606.05250, 1806.03822), TriviaQA (1705.03551), ReCoRD (1810.12885), and the span match that T5 uses
for WSC (1910.10683).
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

# Words that the span match of WSC passes over.
_DETERMINERS = frozenset(
    [
        "a",
        "an",
        "each",
        "every",
        "few",
        "her",
        "his",
        "many",
        "much",
        "my",
        "our",
        "some",
        "that",
        "the",
        "their",
        "these",
        "this",
        "those",
        "which",
        "whose",
        "your",
    ]
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_squad(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def normalise_trivia(text: str) -> str:
    """As for SQuAD, but punctuation (quotes and underscores too) parts words."""
    marks = string.punctuation + "‘’´`_"  # noqa: RUF001
    text = "".join(" " if c in marks else c for c in text.lower())
    return " ".join(_ARTICLES.sub(" ", text).split())


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the words of two normalised texts as bags; two empty texts agree."""
    ours, theirs = prediction.split(), answer.split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def answer_scores(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    normalise: Callable[[str], str] = normalise_squad,
) -> dict[str, float]:
    """Exact match and F1, each the best over the accepted answers, averaged over questions.

    A question whose accepted answers are all empty has no answer (SQuAD v2): the empty prediction
    is right.

    Returns:
      {"f1": .., "em": ..}; NaN without questions.
    """
    exact, overlap = [], []
    for prediction, accepted in zip(predictions, answers, strict=True):
        known = [text for text in map(normalise, accepted) if text] or [""]
        said = normalise(prediction)
        exact.append(max(said == text for text in known))
        overlap.append(max(token_f1(said, text) for text in known))
    return {"f1": percent(overlap), "em": percent(exact)}


def percent(values: Sequence[float] | Sequence[bool]) -> float:
    """Mean in percent; NaN of nothing."""
    return 100 * float(np.mean(values)) if len(values) else float("nan")


def names_referent(prediction: str, referent: str) -> bool:
    """Whether a predicted noun phrase names the referent (WSC).

    Case and determiners do not count; one phrase may be part of the other ("bunny", "the fuzzy
    bunny"), unless just one of them is a possessive ("Bob", "Bob's hat"). An empty one names none.
    """

    def clean(text: str) -> str:
        return " ".join(w for w in text.strip().lower().split(" ") if w not in _DETERMINERS)

    said, meant = clean(prediction), clean(referent)
    if ("'" in said) != ("'" in meant):
        return False
    ours, theirs = set(said.split(" ")), set(meant.split(" "))
    return ours <= theirs or theirs <= ours
