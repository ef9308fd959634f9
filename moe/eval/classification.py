"""Scores of classes: accuracy, macro F1, and the two scores of MultiRC, in percent.

A predicted class of -1 stands for a text that names no class; it is always wrong.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from moe.eval.text_match import percent

INVALID = -1


def accuracy(labels: Sequence[int], predicted: Sequence[int]) -> float:
    """Share of equal classes; NaN of nothing."""
    return percent([a == b for a, b in zip(labels, predicted, strict=True)])


def f1(labels: Sequence[int], predicted: Sequence[int], positive: int) -> float:
    """F1 of one class, 2 TP / (2 TP + FP + FN); 0 where the class occurs nowhere."""
    pairs = list(zip(labels, predicted, strict=True))
    both = sum(a == b == positive for a, b in pairs)
    once = sum((a == positive) != (b == positive) for a, b in pairs)
    return 100 * 2 * both / (2 * both + once) if both else 0.0


def macro_f1(labels: Sequence[int], predicted: Sequence[int], classes: int) -> float:
    """Unweighted mean of the F1 of all classes, also of those that do not occur (CB)."""
    if not labels:
        return float("nan")
    return float(np.mean([f1(labels, predicted, positive) for positive in range(classes)]))


def multirc(
    labels: Sequence[int], predicted: Sequence[int], questions: Sequence[Hashable]
) -> dict[str, float]:
    """F1 of the class 1 over all answers (F1a), and the share of questions all of whose answers are
    classed right (exact match), as MultiRC defines them.

    Args:
      labels: 0 or 1 for each answer.
      predicted: 0, 1 or `INVALID`, which counts as the wrong one of both.
      questions: which question each answer belongs to.
    """
    if not labels:
        return {"f1a": float("nan"), "em": float("nan")}
    said = [1 - a if b == INVALID else b for a, b in zip(labels, predicted, strict=True)]
    right = defaultdict(list)
    for question, a, b in zip(questions, labels, said, strict=True):
        right[question].append(a == b)
    return {"f1a": f1(labels, said, 1), "em": percent([all(answers) for answers in right.values()])}


def gender_parity(predicted: Sequence[int], numbers: Sequence[int]) -> float:
    """Share of the pairs that got one class twice (AX-g, whose examples 2k and 2k + 1 differ in the
    gender of one pronoun); NaN without whole pairs.

    Args:
      predicted: classes.
      numbers: of the examples, as published.
    """
    said = dict(zip(numbers, predicted, strict=True))
    pairs = [(said[n], said[n + 1]) for n in said if n % 2 == 0 and n + 1 in said]
    return percent([first == second for first, second in pairs])


def matthews(labels: Sequence[int], predicted: Sequence[int]) -> float:
    """Matthews' correlation of two classes, in percent (AX-b); 0 where it is not defined.

    An invalid class counts as the wrong one of both.
    """
    if not labels:
        return float("nan")
    said = [1 - a if b == INVALID else b for a, b in zip(labels, predicted, strict=True)]
    both = list(zip(labels, said, strict=True))
    yes, no = both.count((1, 1)), both.count((0, 0))
    wrong = both.count((0, 1)), both.count((1, 0))
    scale = math.prod((yes + wrong[0], yes + wrong[1], no + wrong[0], no + wrong[1]))
    return 100 * (yes * no - wrong[0] * wrong[1]) / math.sqrt(scale) if scale else 0.0
