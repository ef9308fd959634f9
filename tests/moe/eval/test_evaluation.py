"""Evaluations as values: names, lines and tables are made of them, and nothing is read back."""

from __future__ import annotations

import math

import numpy as np

from moe.config import default_config
from moe.eval.evaluation import Evaluation
from moe.eval.measured import Measured, Predicted
from moe.eval.scores import Scores

BLOCKS = {"encoder": (1, 3), "decoder": ()}
SUMS = {
    "accuracy": (np.float32(1), np.float32(2)),
    "router/encoder/dropped_choices": (np.array([0.0, 1.0]), np.array([4.0, 4.0])),
    "router/encoder/entropy": (np.array([2.0, 3.0]), np.array([4.0, 0.0])),
    "router/encoder/load": (np.array([[1.0, 3.0], [4.0, 0.0]]), np.array([4.0, 8.0])),
    "router_loss": (np.float32(3), np.float32(2)),
}


def test_values_of_a_step_stand_in_the_order_of_its_sums():
    """`router_loss` after `router/..`, as a compiled step returns its sums: by name."""
    flat = Measured.of(SUMS, BLOCKS).flat()
    assert list(flat) == [
        "accuracy",
        "router/encoder.1/dropped_choices",
        "router/encoder.3/dropped_choices",
        "router/encoder.1/entropy",
        "router/encoder.3/entropy",
        "router/encoder.1/load_0",
        "router/encoder.1/load_1",
        "router/encoder.3/load_0",
        "router/encoder.3/load_1",
        "router_loss",
    ]
    assert flat["router/encoder.1/entropy"] == 0.5
    assert math.isnan(flat["router/encoder.3/entropy"])  # nothing was counted
    assert all(type(value) is float for value in flat.values())


def test_routers_of_two_parts_add_up_by_their_rates():
    routers = Measured.of(SUMS, BLOCKS).routers
    both = routers.weighted(0.75, routers.weighted(0.25))
    np.testing.assert_array_equal(both.loads()["encoder.1"], [0.25, 0.75])
    assert (
        dict(both.rows())["router encoder.1"] == "load 25 75 %, dropped 0.0 %, entropy 0.50 of 0.69"
    )


def test_an_evaluation_has_names_for_files_and_rows_for_readers():
    scores = Scores({"copa": {"accuracy": 60.0}})
    whole = Predicted(cross_entropy=2.0, accuracy=0.5, tokens=1234)
    evaluation = Evaluation(whole, {}, Measured.of(SUMS, BLOCKS).routers, 2.5, scores)
    assert list(evaluation.flat()) == [
        "accuracy",
        "cross_entropy",
        "score/copa/accuracy",
        "score/mean",
    ]
    everything = evaluation.everything()
    assert {**everything, **evaluation.flat()} == everything
    assert everything["tokens"] == 1234
    assert everything["unigram_entropy"] == 2.5
    assert everything["router/encoder.3/load_0"] == 0.5
    assert evaluation.phrase() == (
        "cross-entropy 2.0000 (unigram 2.5000), accuracy 50.00 % on 1,234 tokens, "
        "mean of tasks 60.00"
    )
    rows = dict(evaluation.rows(default_config("st_moe_tiny")))
    assert rows["unigram entropy"] == "2.5000 nats; cross-entropy is 0.5000 below"
    assert list(rows)[3:] == [
        "scored",
        "copa",
        "mean of tasks",
        "router encoder.1",
        "router encoder.3",
    ]
