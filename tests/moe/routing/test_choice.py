"""How tokens choose, against the rules in NumPy: sigmoids, balance biases, groups of experts, and
what the balance loss is taken over. Values, gradients, 1 and 8 devices.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moe.conformance import oracle
from moe.routing.choice import BiasStep
from moe.routing.config import RoutingConfig
from moe.routing.losses import auxiliary_loss
from moe.routing.route import route
from tests.moe.meshes import QUICK
from tests.moe.routing.test_route import check, compiled
from trainlib.errors import ConfigError
from trainlib.sharding.mesh import make_mesh

ALL = {"second_policy": "all", "min_capacity": 1}
GROUPS = {"expert_groups": 4, "groups_per_token": 2}
# What DeepSeek-V3 does, at a small size: 12 experts in 4 groups, 4 choices in the best 2.
V3 = {"scores": "sigmoid", "gate_scale": 2.5, "balance_bias": True, "top_k": 4, **GROUPS, **ALL}
# (groups, tokens, experts, options)
SHAPES = {
    "sigmoid": (2, 19, 5, {"scores": "sigmoid", "top_k": 2, **ALL}),
    "sigmoid top-1": (1, 16, 4, {"scores": "sigmoid", "top_k": 1, **ALL}),
    "raw sigmoids, scaled": (
        *(1, 20, 6),
        {"scores": "sigmoid", "top_k": 3, "normalize_gates": False, "gate_scale": 2.5, **ALL},
    ),
    "by priority": (2, 17, 6, {"scores": "sigmoid", "batch_prioritized": True, **ALL}),
    "random second": (1, 24, 4, {"scores": "sigmoid", "balance_bias": True, "top_k": 2}),
    "bias on probabilities": (2, 15, 6, {"balance_bias": True, "top_k": 2, **ALL}),
    "DeepSeek-V2": (2, 13, 12, {"expert_group_score": "best", "top_k": 3, **GROUPS, **ALL}),
    "DeepSeek-V3": (2, 21, 12, V3),
    "groups of one": (
        *(1, 14, 4),
        {"expert_groups": 4, "groups_per_token": 3, "top_k": 3, **ALL},
    ),
    "if dropped": (
        *(1, 18, 4),
        {"scores": "sigmoid", "balance_bias": True, "top_k": 3, "second_policy": "if_dropped"}
        | {"capacity_factor": 0.8, "min_capacity": 1},
    ),
}


def drawn(name, number=0):
    """A configuration, logits, mask, draws and, where one is asked for, a bias."""
    groups, size, experts, options = SHAPES[name]
    config = RoutingConfig(experts, **options)
    rng = np.random.default_rng([number, len(name)])
    logits = rng.normal(size=(groups, size, experts)) * 2 + rng.normal(size=experts)
    if number % 3 == 1:
        logits = np.round(logits)  # ties
    mask = rng.random((groups, size)) < (0.7 if number % 2 else 1.0)
    draws = rng.random((groups, size, config.top_k - 1)).astype(np.float32)
    bias = np.float32(0.3 * rng.normal(size=experts)) if config.balance_bias else None
    return config, logits.astype(np.float32), mask, draws, bias


@pytest.mark.thorough
@pytest.mark.parametrize("name", SHAPES)
def test_choices_equal_their_rules(name):
    """Maps, gates, losses and metrics of 6 cases of each setting, with ties and padding."""
    for number in range(6):
        config, logits, mask, draws, bias = drawn(name, number)
        got = jax.tree.map(np.asarray, compiled(config, True)(logits, mask, draws, bias))
        check(got, config, logits, mask, draws, True, bias)


@pytest.mark.parametrize("name", ["sigmoid", "bias on probabilities", "DeepSeek-V2", "DeepSeek-V3"])
def test_gradients_are_those_of_finite_differences_of_the_rules(name):
    """Of gates and losses; the rules in float64, so that choices stay and differences are exact."""
    config, logits, mask, draws, bias = drawn(name)
    config = dataclasses.replace(config, balance_loss_weight=0.7, z_loss_weight=0.03)
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(*mask.shape, config.top_k))
    direction = rng.normal(size=logits.shape)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def slope(logits):
        def loss(logits):
            routed = route(logits, config, train=True, mask=mask, draws=draws, bias=bias)
            total = jax.tree.map(lambda v: v.sum(0), routed.losses)
            return jnp.vdot(routed.gates, weight) + auxiliary_loss(total, config)

        return jnp.vdot(jax.grad(loss)(logits), direction)

    def by_rules(logits):
        total, losses = 0.0, []
        for g in range(len(logits)):
            routed = oracle.route_group(logits[g], mask[g], draws[g], config, True, bias)
            total += float((routed.gates * weight[g]).sum())
            losses.append(routed.losses)
        for name, coefficient in (("balance", 0.7), ("z", 0.03)):
            value, count = np.sum([of[name] for of in losses], axis=0)
            total += coefficient * value / count
        return total

    step, at = 1e-6, logits.astype(np.float64)
    want = (by_rules(at + step * direction) - by_rules(at - step * direction)) / (2 * step)
    np.testing.assert_allclose(float(slope(logits)), want, rtol=2e-4)


@pytest.mark.parametrize("over", ["group", "sequence", "batch"])
def test_the_balance_loss_is_taken_over_what_it_says(over):
    """Eight groups of 6 tokens that are 4 sequences of 12, on one device and on several; of them
    two groups are all padding, and one but for two tokens.
    """
    options = {"scores": "sigmoid", "balance_over": over, "balance_choices": "all", **ALL}
    config = RoutingConfig(4, **options)
    rng = np.random.default_rng(1)
    logits = np.float32(rng.normal(size=(8, 6, 4)) + rng.normal(size=4))
    mask = np.ones((8, 6), bool)
    mask[5:7] = False
    mask[4, 2:] = False

    def run(logits, mask, axes=()):
        routed = route(logits, config, train=True, mask=mask, length=12, axes=axes)
        return routed.losses["balance"]

    def value(logits, mask, run=run):
        total, count = (jnp.sum(v) for v in run(logits, mask))
        return total / count, (total, count)

    def both(run):
        function = functools.partial(value, mask=mask, run=run)
        step = jax.value_and_grad(function, has_aux=True)
        return jax.jit(step, compiler_options=QUICK)(logits)

    (_, (total, count)), gradient = both(run)
    want, number = oracle.balance(logits.astype(np.float64), mask, config, length=12)
    np.testing.assert_allclose((total, count), (want, number), rtol=1e-5)
    assert number == {"group": 6, "sequence": 4, "batch": 1}[over]
    direction = rng.normal(size=logits.shape)
    ahead, behind = (
        np.divide(*oracle.balance(logits + s * direction, mask, config, length=12))
        for s in (1e-6, -1e-6)
    )
    slope = float(jnp.vdot(gradient, direction))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-4)

    devices = 4 if over == "sequence" else 8  # a sequence of two groups lies on one device
    mesh = make_mesh(1, devices, 1, jax.devices()[:devices])
    spread = jax.shard_map(
        functools.partial(run, axes=("data",)),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
        check_vma=False,
    )
    (_, sums), gradients = both(spread)
    np.testing.assert_allclose(sums, (total, count), rtol=1e-5)
    np.testing.assert_allclose(gradients, gradient, rtol=1e-4, atol=1e-7)


def test_the_loss_of_the_batch_is_that_of_one_group_that_holds_it():
    config = RoutingConfig(4, balance_over="batch", **ALL)
    one = dataclasses.replace(config, balance_over="group")
    logits = np.random.default_rng(0).normal(size=(4, 6, 4)).astype(np.float32)
    apart = compiled(config, True)(logits, None, None).losses["balance"]
    whole = compiled(one, True)(logits.reshape(1, 24, 4), None, None).losses["balance"]
    np.testing.assert_allclose([v.sum() for v in apart], [v.sum() for v in whole], rtol=1e-6)


def test_a_bias_evens_out_a_skewed_router_and_leaves_gates_alone():
    """Logits that send nearly all tokens to two of eight experts: the violation max / mean - 1
    falls from above 2 to below 0.1, and every gate is still the sigmoid of its own logit.
    """
    config = RoutingConfig(
        8, scores="sigmoid", balance_bias=True, normalize_gates=False, capacity_factor=8.0, **ALL
    )
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(size=(1, 400, 8)) + 2.5 * np.eye(8)[0] + 2.0 * np.eye(8)[1])
    move = BiasStep(0.02)

    @jax.jit
    def steps(bias):
        def turn(bias, _):
            routed = route(logits, config, train=True, bias=bias)
            load = jnp.sum(routed.metrics["load"][0], axis=0)
            return move(bias, load), (load, routed.gates, routed.expert)

        return jax.lax.scan(turn, bias, None, length=120)

    bias, (loads, gates, experts) = steps(jnp.zeros(8))
    violation = loads.max(-1) / loads.mean(-1) - 1
    assert violation[0] > 2
    assert violation[-20:].min() < 0.1
    own = np.take_along_axis(logits[0], np.asarray(experts[-1, 0]), axis=-1)
    np.testing.assert_allclose(gates[-1, 0], 1 / (1 + np.exp(-own)), rtol=1e-6)
    moved = np.zeros(8)
    for load in np.asarray(loads):
        moved = oracle.moved_bias(moved, load, 0.02)
    np.testing.assert_allclose(bias, moved, atol=1e-6)


def test_a_token_meets_as_many_groups_as_it_may():
    """Each token's experts lie in two neighbouring blocks of three, and are the best of these."""
    config, logits, mask, draws, bias = drawn("DeepSeek-V3")
    routed = compiled(config, True)(logits, mask, draws, bias)
    groups = np.asarray(routed.expert) // 3
    assert max(len(set(row)) for row in groups.reshape(-1, 4).tolist()) == 2
    free = dataclasses.replace(config, expert_groups=1, groups_per_token=1)
    freely = compiled(free, True)(logits, mask, draws, bias)
    assert np.any(np.asarray(freely.expert) != np.asarray(routed.expert))


def test_extreme_logits_have_sigmoids_and_shares():
    """Sigmoids of -1e4 are 0 in float32, all of them; shares of them are still probabilities."""
    config = RoutingConfig(4, scores="sigmoid", **ALL)
    logits = np.full((1, 5, 4), -1e4, np.float32)
    logits[0, 1] = 1e4
    routed = jax.tree.map(np.asarray, compiled(config, True)(logits, None, None))
    assert np.isfinite(routed.gates).all()
    np.testing.assert_allclose(routed.metrics["entropy"][0], [5 * np.log(4)], rtol=1e-5)
    np.testing.assert_allclose(routed.losses["balance"][0], [1.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scores": "tanh"}, "softmax"),
        ({"expert_groups": 3}, r"expert_groups=3 does not divide routing\.num_experts=8"),
        ({"groups_per_token": 2}, r"groups_per_token=2 is more than the routing\.expert_groups=1"),
        ({"expert_groups": 8, "top_k": 3}, "Use groups_per_token=3 or more"),
        ({"balance_bias": True, "router": "experts_choose"}, "router='tokens_choose'"),
        ({"expert_groups": 2, "sample_temperature": 1.0}, "sample_temperature=0"),
        ({"balance_over": "device"}, "batch, group, sequence|group, sequence, batch"),
        ({"gate_scale": 0.0}, "gate_scale=0"),
    ],
)
def test_options_that_cannot_work_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        RoutingConfig(8, **options)


def test_a_length_that_does_not_divide_the_tokens_is_named():
    config = RoutingConfig(4, balance_over="sequence", **ALL)
    with pytest.raises(ConfigError, match=r"length=5, the tokens of a sequence.* 2 x 8 tokens"):
        jax.eval_shape(lambda x: route(x, config, train=True, length=5), jnp.zeros((2, 8, 4)))


@pytest.mark.parametrize("asked", [True, False])
def test_a_bias_is_given_where_it_is_asked_for_and_only_there(asked):
    config = RoutingConfig(4, balance_bias=asked, **ALL)
    bias = None if asked else jnp.zeros(4)
    with pytest.raises(ConfigError, match=f"balance_bias={asked}"):
        jax.eval_shape(lambda x: route(x, config, train=True, bias=bias), jnp.zeros((1, 8, 4)))
