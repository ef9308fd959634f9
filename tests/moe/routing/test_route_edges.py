"""Routing at its edges, each case against the NumPy rules, float32 and bfloat16, compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing.config import RoutingConfig
from moe.routing.losses import auxiliary_loss
from moe.routing.route import route
from tests.moe.routing.test_route import check, compiled
from trainlib.errors import ConfigError

RNG = np.random.default_rng(7)
PLAIN = RNG.normal(size=(1, 12, 4))
ONE_EXPERT = np.zeros((1, 12, 4)) + np.array([0, 9, 0, 0]) + 0.01 * PLAIN
LAST_HIGHEST = ONE_EXPERT + 0.5 * np.arange(12)[None, :, None] * np.array([0, 1, 0, 0])

ONE = {"top_k": 1, "capacity_factor": 1.0}
TWO = {"top_k": 2, "second_policy": "all"}
FIRST = {**ONE, "batch_prioritized": True}
FOUR = {"top_k": 4, "second_policy": "random"}

EDGES = {
    "all to one expert": (ONE_EXPERT, ONE),
    "all to one expert, two choices": (ONE_EXPERT, TWO),
    "all to one expert, by priority": (LAST_HIGHEST, FIRST),
    "every logit equal": (np.zeros((1, 12, 4)), TWO),
    "every logit equal, by priority": (np.zeros((1, 12, 4)), FIRST),
    "two experts tie": (np.tile([1.0, 3.0, 3.0, 0.0], (1, 12, 1)), ONE),
    "one expert": (PLAIN[..., :1], ONE),
    "fewer tokens than experts": (RNG.normal(size=(1, 3, 8)), {**TWO, "capacity_factor": 4.0}),
    "one token": (RNG.normal(size=(1, 1, 4)), {**TWO, "capacity_factor": 4.0}),
    "capacity for everything": (PLAIN, {**TWO, "capacity_factor": 100.0}),
    "capacity of one row": (PLAIN, {**TWO, "capacity_factor": 0.34}),
    "second gate zero": (np.tile([300.0, 0.0, -300.0, 0.0], (1, 12, 1)), TWO),
    "third and fourth gate zero": (200 * PLAIN, FOUR),
    "logits of +-1e4": (1e4 * np.sign(PLAIN), TWO),
    "logits of +-300": (300 * np.sign(PLAIN), FOUR),
    "as many choices as experts": (PLAIN, FOUR),
}


def simple(logits, mask=None, draws=None, **options):
    """A routing in training and what `check` needs beside it."""
    logits = np.asarray(logits)
    config = RoutingConfig(logits.shape[-1], **{"min_capacity": 1, **options})
    mask = np.ones(logits.shape[:2], bool) if mask is None else mask
    if draws is None:
        draws = np.random.default_rng(1).random((*mask.shape, config.top_k - 1), np.float32)
    logits = logits.astype(np.float32) if logits.dtype == np.float64 else logits
    routing = jax.tree.map(np.asarray, compiled(config, True)(logits, mask, draws))
    return routing, (config, logits, mask, draws)


@pytest.mark.thorough
@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_edge(name, dtype):
    logits, options = EDGES[name]
    routing, case = simple(jnp.asarray(logits, dtype), **options)
    check(routing, *case)


def test_a_full_expert_keeps_the_first_tokens_and_priority_keeps_the_surest():
    """C = 12 / 4 = 3: tokens 0 to 2 from the left, 11 to 9 by probability; the rest is dropped."""
    left, surest = simple(ONE_EXPERT, **ONE)[0], simple(LAST_HIGHEST, **FIRST)[0]
    assert np.flatnonzero(left.gates[0, :, 0]).tolist() == [0, 1, 2]
    assert surest.source[1, 0].tolist() == [11, 10, 9]
    for routing in (left, surest):
        assert float(routing.metrics["dropped_tokens"][0][0]) == 9
        # First choices all on one expert whose probability is near 1: E.
        np.testing.assert_allclose(routing.losses["balance"][0], [4.0], rtol=2e-3)


def test_ties_go_to_the_lowest_index():
    routing, _ = simple(np.zeros((1, 12, 4)), **TWO)
    assert routing.expert[0].tolist() == [[0, 1]] * 12


@pytest.mark.parametrize("pattern", ["end", "start", "holes", "all but one", "all"])
def test_padding_is_neither_routed_nor_counted(pattern):
    """A group with padding routes its tokens as those tokens alone, whatever the padding holds."""
    size = 12
    mask = np.ones((1, size), bool)
    hidden = {"end": slice(7, None), "start": slice(0, 4), "holes": slice(1, None, 2)}
    mask[0, hidden.get(pattern, slice(0 if pattern == "all" else 1, None))] = False
    routing, (config, logits, _, draws) = simple(
        np.where(mask[..., None], PLAIN, 1e30), mask, **TWO
    )
    check(routing, config, logits, mask, draws)
    assert np.all(routing.expert[0, ~mask[0]] == 4)
    assert np.all(routing.gates[0, ~mask[0]] == 0)
    if pattern == "all":
        assert np.all(routing.source == 2 * size)
        assert all(float(total.sum()) == 0 for total, _ in routing.losses.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_touches_only_itself(value):
    """The others are routed as if it were padding; the loss turns NaN, which skips the step."""
    logits = PLAIN.astype(np.float32).copy()
    logits[0, 5, 2] = value
    mask = np.ones((1, 12), bool)
    mask[0, 5] = False
    (got, (config, *_)), (want, _) = (simple(logits, m, **TWO) for m in (~mask | True, mask))
    for name in ("slot", "source", "gates", "expert"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert float(got.metrics["nonfinite"][0].sum()) == 1
    assert float(want.metrics["nonfinite"][0].sum()) == 0
    for name in ("balance", "z"):
        np.testing.assert_array_equal(got.losses[name][0], want.losses[name][0])
    assert np.isnan(auxiliary_loss(got.losses, config))
    assert np.isfinite(auxiliary_loss(want.losses, config))


def test_the_largest_floats_route_and_their_loss_says_so():
    """+-3e38: softmax is exact; logsumexp squared passes float32, so the step will be skipped."""
    logits = np.where(PLAIN.max(-1, keepdims=True) == PLAIN, 3e38, -3e38)
    routing, _ = simple(logits, **ONE)
    np.testing.assert_array_equal(routing.expert[0, :, 0], logits[0].argmax(-1))
    np.testing.assert_array_equal(routing.gates[0, :, 0], routing.slot[0, :, 0] < 12)
    assert np.isfinite(routing.losses["balance"][0]).all()
    assert np.isposinf(routing.losses["z"][0]).all()
    assert float(routing.metrics["entropy"][0][0]) == 0.0


@pytest.mark.slow
def test_more_tokens_than_float32_can_count():
    """2**24 + 3 tokens for one expert: positions and counts beyond 2**24 are still exact."""
    count = 2**24 + 3
    logits = np.zeros((1, count, 2), np.float32)
    logits[..., 1] = 9.0
    rows = count - 1  # all but the last find a row
    routing, _ = simple(logits, top_k=1, capacity_factor=2 * rows / count)
    assert routing.slot[0, -4:, 0].tolist() == [2 * rows - 3, 2 * rows - 2, 2 * rows - 1, 2 * rows]
    assert routing.source[1, 0, -2:].tolist() == [rows - 2, rows - 1]
    assert float(routing.metrics["dropped_choices"][0][0]) == 1
    np.testing.assert_allclose(routing.losses["balance"][0], [2.0], rtol=1e-3)


def test_too_many_choices_for_32_bits_are_refused():
    run = functools.partial(route, config=RoutingConfig(2048, 2), train=True)
    big = jax.ShapeDtypeStruct((1, 2**20, 2048), jnp.float32)
    draws = jax.ShapeDtypeStruct((1, 2**20, 1), jnp.float32)
    with pytest.raises(ConfigError, match=r"too many to sort .*\.group_size"):
        jax.eval_shape(run, big, draws=draws)


def test_the_random_policy_needs_draws_and_keeps_the_stated_share():
    """Second gate g is kept with probability min(1, g / 0.2)."""
    with pytest.raises(ValueError, match="draws"):
        jax.eval_shape(
            functools.partial(route, config=RoutingConfig(4), train=True),
            jnp.zeros((1, 4, 4)),
        )
    size, gate = 4000, 0.05
    logits = np.tile(np.log([1 - gate, gate]), (1, size, 1)).astype(np.float32)
    draws = np.random.default_rng(0).random((1, size, 1)).astype(np.float32)
    routing, _ = simple(logits, None, draws, top_k=2, capacity_factor=9.0)
    share = float(routing.metrics["second_rate"][0][0]) / size
    assert abs(share - gate / 0.2) < 4 * (0.25 * 0.75 / size) ** 0.5  # four standard deviations
