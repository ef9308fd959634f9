"""The reference against finite differences and the oracle, and the files against both."""

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
SOME = ("top1/00", "top2/00", "top3/01", "raw_gates/01", "padding/00", "sigmoid/00", "sigmoid/01")


def answers(case, asked, **changes):
    return reference.answer(case.logits, case.mask, case.draws, asked, **changes)


def test_there_are_300_cases_with_different_questions():
    assert len(CASES) == 300
    questions = {(c.logits.tobytes(), c.mask.tobytes(), c.settings) for c in CASES.values()}
    assert len(questions) == 300


def test_the_files_hold_what_the_generator_makes():
    """Of each theme two cases, to the last digit."""
    for theme in cases.themes():
        lines = (cases.FOLDER / f"{theme}.jsonl").read_text().splitlines()
        for number in (1, 12):
            assert cases.encode(generate.make(theme, number)) in lines, (theme, number)


def test_the_files_hold_what_the_reference_answers():
    for case in CASES.values():
        one = reference.answer if case.layers == 1 else reference.answer_of_layers
        found = one(case.logits, case.mask, case.draws, rules(case.settings))
        for name in ("combine", "position", "balance", "z"):
            want = getattr(case.expected, name)
            if want is not None:
                np.testing.assert_allclose(getattr(found, name), want, rtol=1e-5, atol=1e-5)


def test_weights_are_the_gates_of_the_oracle():
    for name in SOME:
        case = CASES[name]
        found = reference.choose(
            case.logits.astype(float), case.mask, case.draws, rules(case.settings)
        )
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
            reference.answer(case.logits + s * direction, case.mask, case.draws, asked)
            for s in (step, -step)
        )
        exact = answers(case, asked).gradients
        totals = {
            "combine": lambda a, w=case.cotangent: np.sum(w * a.combine),
            "balance": lambda a: a.balance,
            "z": lambda a: a.z,
        }
        for figure, total in totals.items():
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
