"""What follows from a load and from a routing, against counts by hand."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from moe.observatory import figures
from moe.observatory.alerts import RULES
from moe.routing.metrics import METRICS
from tests.launch.commands import ROOT


@pytest.mark.parametrize(
    ("load", "largest", "mean", "spread"),
    [
        ([0.25] * 4, 0.0, 0.0, 4.0),
        ([1.0, 0.0, 0.0, 0.0], 3.0, 1.5, 1.0),  # all on one: E - 1, and (3 + 1 + 1 + 1) / 4
        ([0.5, 0.5, 0.0, 0.0], 1.0, 1.0, 2.0),  # top-2 with all tokens on the same two
        ([1.0], 0.0, 0.0, 1.0),  # one expert is always even
    ],
)
def test_unevenness_of_loads_that_can_be_counted(load, largest, mean, spread):
    found = figures.uneven(np.array(load))
    assert list(found.values()) == pytest.approx([largest, mean, spread])


def test_a_layer_that_was_sent_nothing_says_nothing():
    nothing = np.full(4, math.nan)
    assert all(math.isnan(value) for value in figures.uneven(nothing).values())
    before = np.array([0.0, 30.0, 5.0, 0.0])
    np.testing.assert_array_equal(figures.idle_for(nothing, before, 10), before)


def test_an_expert_is_idle_below_a_hundredth_of_an_even_share():
    load = np.array([0.0, 0.0024, 0.0026, 0.995])  # an even share is 0.25
    idle = figures.idle_for(load, np.array([20.0, 0.0, 40.0, 10.0]), 10)
    np.testing.assert_array_equal(idle, [30, 1, 0, 0])  # busy 10 steps ago: idle in one record


def test_churn_is_the_share_of_the_choices_that_moved():
    rng = np.random.default_rng(0)
    expert = np.stack([rng.permutation(8)[:2] for _ in range(1000)])
    before = figures.sent_to(expert, 8)
    assert figures.churn(before, before) == 0
    moved = expert.copy()
    moved[:250, 0] = [next(e for e in range(8) if e not in pair) for pair in expert[:250]]
    assert figures.churn(before, figures.sent_to(moved, 8)) == pytest.approx(250 / 2000)
    assert figures.churn(before, figures.sent_to(np.full_like(expert, 8), 8)) != 0  # NaN: no choice


def test_experts_that_choose_take_no_square_of_their_number():
    """Choice k is expert k there: a comparison of all with all would have T * E * E entries."""
    experts, tokens = 4096, 64
    taken = np.random.default_rng(0).random((tokens, experts)) < 0.1
    expert = np.where(taken, np.arange(experts), experts)
    tracemalloc.start()
    sent = figures.sent_to(expert, experts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * tokens * experts
    np.testing.assert_array_equal(np.unpackbits(sent, axis=1).astype(bool), taken)


def test_churn_is_one_less_the_cosine_of_the_two_routings():
    """Also where policies sent another number of choices; choices not sent are E."""
    before, now = np.array([[0, 1], [2, 4]]), np.array([[0, 4], [2, 3]])
    one_hot = np.eye(5)[:, :4]
    flat = [one_hot[expert].sum(1).ravel() for expert in (before, now)]
    cosine = flat[0] @ flat[1] / math.sqrt(flat[0] @ flat[0] * (flat[1] @ flat[1]))
    found = figures.churn(*(figures.sent_to(expert, 4) for expert in (before, now)))
    assert found == pytest.approx(1 - cosine)


def test_the_page_explains_every_figure_and_every_alert():
    page = (ROOT / "docs" / "router.md").read_text()
    figures_of_load = figures.uneven(np.ones(1))
    for name in {*METRICS, *figures_of_load, "grad_norm", "churn", *RULES, "loss_spike"} - {"load"}:
        assert f"`{name}`" in page, name
