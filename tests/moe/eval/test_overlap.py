"""ROUGE against values derived by hand from its definition."""

import pytest

from moe.eval.overlap import rouge


def test_scores_are_those_of_the_definition():
    # Prediction "the cat sat" and summary "the cat lay down":
    # 1-grams: 2 common of 3 and 4 -> 2*2/7; 2-grams: "the cat" of 2 and 3 -> 2*1/5;
    # longest common subsequence "the cat": 2 of 3 and 4 -> 4/7.
    scores = rouge(["the cat sat"], [["the cat lay down"]])
    assert scores["rouge1"] == pytest.approx(400 / 7)
    assert scores["rouge2"] == pytest.approx(40)
    assert scores["rougeL"] == pytest.approx(400 / 7)


def test_lsum_takes_sentences_apart():
    # Sentences in the other order: as one text the longest common subsequence has 2 of 4 words,
    # sentence by sentence all 4 are found.
    scores = rouge(["a b\nc d"], [["c d\na b"]])
    assert scores["rougeL"] == pytest.approx(50)
    assert scores["rougeLsum"] == pytest.approx(100)


def test_empty_predictions_and_means():
    # Nothing in common, and everything: the mean of 0 and 100.
    scores = rouge(["", "x y"], [["some words"], ["x y"]])
    assert set(scores.values()) == {50.0}
