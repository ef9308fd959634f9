"""Scores of free answers against values derived by hand."""

import math

import pytest

from moe.eval.text_match import (
    answer_scores,
    names_referent,
    normalise_squad,
    normalise_trivia,
    token_f1,
)


def test_normalisation_is_that_of_the_evaluation_scripts():
    assert normalise_squad("The  Eiffel-Tower, (Paris)!") == "eiffeltower paris"
    assert normalise_squad("an apple a day") == "apple day"
    assert normalise_squad("Theatre of another") == "theatre of another"  # no article inside words
    assert normalise_squad("...") == ""
    # TriviaQA parts words at punctuation instead.
    assert normalise_trivia("The Eiffel-Tower, 'Paris'") == "eiffel tower paris"
    assert normalise_trivia("snake_case") == "snake case"


def test_f1_counts_repeated_words_as_often_as_they_occur():
    # "x x y" and "x y y": common x once, y once = 2; 2*2 / (3+3)
    assert token_f1("x x y", "x y y") == pytest.approx(2 / 3)
    # "red" of "red brick house": precision 1, recall 1/3 -> 2*1/(1+3)
    assert token_f1("red", "red brick house") == 0.5
    assert token_f1("", "") == 1.0
    assert token_f1("", "x") == token_f1("x", "") == 0.0


def test_answers_score_by_the_best_accepted_one():
    scores = answer_scores(
        ["the red house", "blue", "", "nothing"],
        [
            ["red house", "house"],  # exact after the article; F1 1
            ["light blue sky", "dark blue"],  # F1 max(2/4, 2/3) = 2/3; not exact
            ["green"],  # empty prediction: 0, 0
            ["no"],  # 0, 0
        ],
    )
    assert scores["em"] == pytest.approx(25.0)  # 1 of 4
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3) / 4)


def test_questions_without_answer_want_an_empty_prediction():
    scores = answer_scores(["", "the", "something"], [[], [""], []])
    # "the" normalises to nothing and is right too: 2 of 3.
    assert scores == {"f1": pytest.approx(200 / 3), "em": pytest.approx(200 / 3)}
    assert math.isnan(answer_scores([], [])["f1"])


def test_a_repeated_accepted_answer_changes_nothing():
    once = answer_scores(["a b"], [["b c"]])
    assert once == answer_scores(["a b"], [["b c", "b c"]])
    # "a" is an article: "b" and "b c" share one word: 2*1/(1+2)
    assert once == {"f1": pytest.approx(200 / 3), "em": 0.0}


@pytest.mark.parametrize(
    ("prediction", "referent", "expected"),
    [
        ("the bunny", "The fuzzy bunny", True),  # part of it
        ("the old fuzzy bunny", "fuzzy bunny", True),  # more than it
        ("Bob", "Bob's hat", False),  # the possessive is someone else
        ("Bob's hat", "his hat", False),
        ("bunny", "rabbit", False),
        ("", "bunny", False),
        ("the", "bunny", False),  # nothing is left of it
        ("fuzzy cat", "fuzzy bunny", False),  # overlap alone is not enough
    ],
)
def test_a_span_names_the_referent(prediction, referent, expected):
    assert names_referent(prediction, referent) is expected
