"""The reference against finite differences and the oracle, and the files against both."""

import dataclasses

import numpy as np
import pytest

from moe.conformance import cases, generate, oracle, reference
from moe.conformance.settings import Rules, rules

CASES = {case.name: case for case in cases.load()}
CHANGES = (
    {},
    {"renormalize": True},
    {"normalize_one": True},
    {"shares_again": True},
    {"share_epsilon": 1e-3},
    {"counted_when_placed": True},
    {"balance_choices": "all", "share_over_choices": True},
    {"z_of": "probabilities"},
    {"z_of": "largest"},
    {"z_squared": False},
    {"padding_counted": True},
)
# One of each kind of router.
SOME = (
    *("top1/00", "top2/00", "top3/01", "raw_gates/01", "padding/00", "sigmoid/00", "sigmoid/01"),
    *("bias/00", "bias/03", "expert_groups/02", "experts_choose/00", "experts_choose/02"),
)


def answers(case, asked, **changes):
    return reference.answer(case.logits, case.mask, case.draws, asked, bias=case.bias, **changes)


def test_there_are_360_cases_with_different_questions():
    assert len(CASES) == 360
    questions = {(c.logits.tobytes(), c.mask.tobytes(), c.settings) for c in CASES.values()}
    assert len(questions) == 360
    # Those of the routers of the papers, which every adapter is asked.
    assert sum(not c.settings.extensions for c in CASES.values()) == 300


def test_the_files_hold_what_the_generator_makes():
    """Of each theme two cases, to the last digit."""
    for theme in cases.themes():
        lines = (cases.FOLDER / f"{theme}.jsonl").read_text().splitlines()
        for number in (1, 12):
            assert cases.encode(generate.make(theme, number)) in lines, (theme, number)


def test_the_files_hold_what_the_reference_answers():
    for case in CASES.values():
        asked = rules(case.settings)
        if case.layers == 1:
            found = answers(case, asked)
        else:
            found = reference.answer_of_layers(case.logits, case.mask, case.draws, asked)
        for name in ("combine", "position", "balance", "z"):
            want = getattr(case.expected, name)
            if want is not None:
                np.testing.assert_allclose(getattr(found, name), want, rtol=1e-5, atol=1e-5)


def test_weights_are_the_gates_of_the_oracle():
    for name in SOME:
        case = CASES[name]
        asked = rules(case.settings)
        bias = case.bias if case.settings.balance_bias else None
        found = reference.choose(case.logits.astype(float), case.mask, case.draws, asked, bias)
        combine = answers(case, rules(case.settings)).combine
        for b, l, k in np.argwhere(found.position >= 0):
            np.testing.assert_allclose(combine[b, l, found.expert[b, l, k]], found.gate[b, l, k])


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_gradients_are_those_of_finite_differences(changes):
    """Along one direction, in float64; no decision changes on the way."""
    for name in SOME:
        case = CASES[name]
        asked = rules(case.settings, **changes)
        direction = np.random.default_rng(0).normal(size=case.logits.shape)
        step = 1e-6
        ahead, behind = (
            answers(dataclasses.replace(case, logits=case.logits + s * direction), asked)
            for s in (step, -step)
        )
        exact = answers(case, asked).gradients
        totals = {
            "combine": lambda a, w=case.cotangent: np.sum(w * a.combine),
            "balance": lambda a: a.balance,
            "z": lambda a: a.z,
        }
        assert set(exact) == {*totals} - ({"balance"} if case.settings.experts_choose else set())
        for figure in exact:
            total = totals[figure]
            slope = (total(ahead) - total(behind)) / (2 * step)
            np.testing.assert_allclose(
                np.sum(exact[figure] * direction), slope, rtol=1e-5, atol=1e-7, err_msg=figure
            )


def test_figures_of_the_papers():
    """Uniform routing costs 1, collapse costs E; z of equal logits is (ln E)**2 (st_moe, 3.3)."""
    collapsed = np.zeros((1, 8, 4)) + 60.0 * (np.arange(4) == 2)
    even = 60.0 * np.tile(np.eye(4), (2, 1))[None]
    mask, draws = np.ones((1, 8), bool), np.zeros((1, 8, 0))
    for logits, balance in ((even, 1.0), (collapsed, 4.0)):
        found = reference.answer(logits, mask, draws, Rules(4, top_k=1))
        np.testing.assert_allclose(found.balance, balance)
    found = reference.answer(np.zeros((1, 8, 4)), mask, draws, Rules(4, top_k=1))
    np.testing.assert_allclose(found.z, np.log(4) ** 2)
    assert oracle.capacity(Rules(32, capacity_factor=1.25), 2048, True) == 80


def test_sigmoids_below_every_epsilon_still_cost_at_least_one():
    """What a router gains nothing by making all of its sigmoids small."""
    logits = np.full((1, 8, 4), -60.0) + np.eye(8, 4)
    mask, draws = np.ones((1, 8), bool), np.zeros((1, 8, 0))
    right = Rules(4, top_k=1, scores="sigmoid")
    assert reference.answer(logits, mask, draws, right).balance >= 1.0
    wrong = rules(right, share_epsilon=1e-20)
    assert reference.answer(logits, mask, draws, wrong).balance < 1e-4


def test_experts_that_choose_by_hand():
    """Capacity 1.0 * 4 / 2 = 2: each expert takes the two tokens that like it best, a token may be
    taken by both or by none, and its gate is the probability itself.
    """
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]])
    asked = Rules(2, router="experts_choose", capacity_factor=1.0)
    found = reference.answer(np.log(p)[None], np.ones((1, 4), bool), np.zeros((1, 4, 1)), asked)
    np.testing.assert_array_equal(found.position[0], [[0, -1], [1, -1], [-1, 0], [-1, 1]])
    np.testing.assert_allclose(found.combine[0], [[0.9, 0], [0.6, 0], [0, 0.7], [0, 0.45]])
    assert found.balance is None


def test_a_bias_and_groups_of_experts_by_hand():
    """Four experts of scores 0.4, 0.3, 0.2, 0.1; top-1, gates without the bias."""
    logits = np.log([[[0.4, 0.3, 0.2, 0.1]]])
    mask, draws = np.ones((1, 1), bool), np.zeros((1, 1, 0))

    def gates(bias=(0, 0, 0, 0), **options):
        asked = Rules(4, top_k=1, dispatch="dropless", balance_bias=True, **options)
        return reference.answer(logits, mask, draws, asked, bias=np.array(bias)).combine[0, 0]

    np.testing.assert_allclose(gates((0, 0, 0, 0.35)), [0, 0, 0, 0.1])
    np.testing.assert_allclose(gates((0, 0, 0, 0.35), gate_scale=2.0), [0, 0, 0, 0.2])
    # Groups {0, 1} and {2, 3}: sums 0.7 and 0.3 + 0.35; best 0.4 and 0.45.
    groups = {"expert_groups": 2, "groups_per_token": 1}
    np.testing.assert_allclose(gates((0, 0, 0, 0.35), **groups), [0.4, 0, 0, 0])
    best = gates((0, 0, 0, 0.35), **groups, expert_group_score="best")
    np.testing.assert_allclose(best, [0, 0, 0, 0.1])
