"""Scores of classes against values derived by hand."""

import math

import pytest

from moe.eval.classification import accuracy, f1, gender_parity, macro_f1, matthews, multirc


def test_accuracy_counts_a_text_that_is_no_class_as_wrong():
    assert accuracy([0, 1, 1, 0], [0, 1, -1, 1]) == 50.0
    assert math.isnan(accuracy([], []))


def test_macro_f1_is_the_mean_over_all_classes():
    labels = [0, 0, 0, 1, 1, 2]
    said = [0, 0, 1, 1, -1, 0]
    # class 0: TP 2, FP 1 (the last), FN 1 -> 4/6;  class 1: TP 1, FP 1, FN 1 -> 2/4;
    # class 2: TP 0 -> 0.   Mean: (2/3 + 1/2 + 0) / 3
    assert f1(labels, said, 0) == pytest.approx(200 / 3)
    assert macro_f1(labels, said, 3) == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)
    # A class that occurs nowhere counts with 0, as in the benchmark's script.
    assert macro_f1([0, 1], [0, 1], 3) == pytest.approx(200 / 3)


def test_multirc_scores_answers_and_questions():
    # Question a: all right. b: one of two wrong. c: an invalid text on a true answer = "false".
    questions = ["a", "a", "b", "b", "c"]
    labels = [1, 0, 1, 0, 1]
    said = [1, 0, 1, 1, -1]
    # F1a: TP 2 (a, b), FP 1 (b), FN 1 (c) -> 2*2 / (4+2); exact: 1 of 3 questions.
    scores = multirc(labels, said, questions)
    assert scores == {"f1a": pytest.approx(200 / 3), "em": pytest.approx(100 / 3)}
    # An invalid text on a false answer counts as "true": TP 1, FP 1 -> 2/3.
    assert multirc([1, 0], [1, -1], ["q", "q"])["f1a"] == pytest.approx(200 / 3)
    assert multirc([0, 0], [0, 0], ["q", "r"]) == {"f1a": 0.0, "em": 100.0}
    assert math.isnan(multirc([], [], [])["em"])


def test_questions_of_different_paragraphs_are_different():
    scores = multirc([1, 1], [1, 0], [(0, 0), (1, 0)])
    assert scores["em"] == 50.0


def test_matthews_correlation():
    # TP 3, TN 2, FP 1, FN 2: (3*2 - 1*2) / sqrt(4 * 5 * 3 * 4) = 4 / sqrt(240) = 0.258199
    labels = [1, 1, 1, 0, 0, 0, 1, 1]
    said = [1, 1, 1, 0, 0, 1, 0, -1]
    assert matthews(labels, said) == pytest.approx(25.8199, abs=1e-4)
    assert matthews([1, 0], [1, 1]) == 0.0  # one class only
    assert matthews([1, 0], [1, 0]) == 100.0


def test_gender_parity_is_the_share_of_pairs_with_one_class():
    # (0, 1): both 1. (2, 3): 0 and 1. (4, 5): both invalid, which is one class too. (7, 8) is no
    # pair and 9 has none: 2 of 3, in whatever order they come.
    said = {5: -1, 0: 1, 1: 1, 2: 0, 3: 1, 4: -1, 7: 0, 8: 0}
    found = gender_parity(list(said.values()), list(said))
    assert found == pytest.approx(200 / 3)
    assert math.isnan(gender_parity([1], [0]))
