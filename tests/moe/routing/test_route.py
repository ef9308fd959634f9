"""Routing against its rules in NumPy: 220 random cases over all options, float32 and bfloat16,
compiled, over devices; then the figures of the papers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moe.conformance import oracle
from moe.routing.config import RoutingConfig, capacity, tokens_per_group
from moe.routing.losses import auxiliary_loss
from moe.routing.metrics import METRICS
from moe.routing.route import route
from trainlib.errors import ConfigError
from trainlib.sharding.mesh import make_mesh

CASES = 220
# (groups, tokens, experts, options): every option appears, with odd sizes.
SHAPES = (
    (1, 16, 4, {"top_k": 1}),
    (2, 19, 5, {"top_k": 2}),
    (1, 24, 3, {"top_k": 3, "capacity_factor": 0.7}),
    (2, 13, 7, {"top_k": 2, "second_policy": "threshold", "normalize_gates": False}),
    (1, 20, 4, {"top_k": 2, "second_policy": "none", "capacity_per_choice": True}),
    (3, 17, 6, {"top_k": 2, "batch_prioritized": True, "capacity_factor": 0.6}),
    (1, 21, 8, {"top_k": 4, "balance_choices": "all", "capacity_rounding": "round"}),
    (2, 32, 2, {"top_k": 2, "second_policy": "all", "logit_clip": 1.0, "min_capacity": 4}),
    (1, 5, 9, {"top_k": 2, "capacity_factor": 3.0}),  # fewer tokens than experts
    (2, 15, 4, {"top_k": 3, "second_policy": "if_dropped", "capacity_factor": 0.9}),
    # What appendix J of ST-MoE reports as without gain.
    (2, 14, 5, {"top_k": 3, "later_balance_weight": 0.5, "whole_expert_dropout": 0.4}),
)


def draw_case(number, dtype=np.float32):
    groups, size, experts, options = SHAPES[number % len(SHAPES)]
    config = RoutingConfig(experts, **{"min_capacity": 1, **options})
    rng = np.random.default_rng(number)
    # A skewed router, so that experts overflow; coarse values, so that there are ties.
    logits = rng.normal(size=(groups, size, experts)) * 2 + rng.normal(size=experts)
    if number % 3 == 0:
        logits = np.round(logits)
    logits = np.asarray(jnp.asarray(logits, dtype))
    mask = rng.random((groups, size)) < (1.0 if number % 4 else 0.7)
    draws = rng.random((groups, size, config.top_k - 1)).astype(np.float32)
    return config, logits, mask, draws


def alive_of(config):
    """bool [E] of `whole_expert_dropout`, or None."""
    rng = np.random.default_rng(config.num_experts)
    return rng.random(config.num_experts) < 0.6 if config.whole_expert_dropout else None


def as_arrays(assignment, experts, rows):
    """Slots [S, K], their inverse [E, C], experts sent to [S, K], from the oracle's assignment."""
    size, choices = len(assignment), len(assignment[0])
    slot = np.full((size, choices), experts * rows)
    source = np.full((experts, rows), choices * size)
    for s, row in enumerate(assignment):
        for k, place in enumerate(row):
            if isinstance(place, tuple):
                expert, position = place
                slot[s, k] = expert * rows + position
                source[expert, position] = k * size + s
    return slot, source


def check(routing, config, logits, mask, draws, train=True, bias=None):
    """One result against the oracle, group by group."""
    experts = config.num_experts
    rows = oracle.capacity(config, logits.shape[1], train)
    for g in range(len(logits)):
        group = logits[g].astype(np.float32), mask[g], draws[g]
        want = oracle.route_group(*group, config, train, bias, alive=alive_of(config))
        assignment, gates, losses, metrics = want
        slot, source = as_arrays(assignment, experts, rows)
        np.testing.assert_array_equal(routing.slot[g], slot)
        np.testing.assert_array_equal(routing.source[:, g], source)
        unsent = np.array([[a == "unsent" for a in row] for row in assignment])
        np.testing.assert_array_equal(routing.expert[g] == experts, unsent)
        np.testing.assert_allclose(routing.gates[g], gates, rtol=2e-6, atol=1e-7)
        for figures, rules in ((routing.losses, losses), (routing.metrics, metrics)):
            for name, (total, count) in rules.items():
                got = figures[name]
                np.testing.assert_allclose(got[0][g], total, rtol=2e-5, atol=1e-5, err_msg=name)
                assert float(got[1][g]) == count, name


@functools.cache
def compiled(config, train):
    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }  # less time in LLVM, the same XLA passes

    def run(logits, mask, draws, bias=None):
        given = {"mask": mask, "draws": draws, "bias": bias, "alive": alive_of(config)}
        return route(logits, config, train=train, **given)

    return jax.jit(run, compiler_options=options)


@pytest.mark.sample(6)
@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_routing_equals_its_rules(shape, dtype):
    """20 cases of each of 11 settings; each setting in training and in evaluation."""
    train = (shape % 2 == 0) == (dtype == jnp.float32)
    for number in range(shape, CASES, len(SHAPES)):
        config, logits, mask, draws = draw_case(number, dtype)
        got = compiled(config, train)(logits, mask, draws)
        check(jax.tree.map(np.asarray, got), config, logits, mask, draws, train)


@pytest.mark.parametrize("number", [1, 5])
def test_groups_over_devices_change_nothing(number):
    """The same maps whether one device routes eight groups or eight devices one each."""
    config, logits, _, _ = draw_case(number)
    rng = np.random.default_rng(number)
    logits = rng.normal(size=(8, *logits.shape[1:])).astype(np.float32)
    mask = np.ones(logits.shape[:2], bool)
    draws = rng.random((8, logits.shape[1], config.top_k - 1)).astype(np.float32)
    mesh = make_mesh(data=8)
    placed = [jax.device_put(v, NamedSharding(mesh, P("data"))) for v in (logits, mask, draws)]
    got = compiled(config, True)(*placed)
    assert len(got.slot.sharding.device_set) == 8
    check(jax.tree.map(np.asarray, got), config, logits, mask, draws)


@pytest.mark.parametrize(
    ("size", "experts", "factor", "rounding", "rows"),
    [
        *((2048, 32, 0.75, "floor", 48), (2048, 32, 1.25, "floor", 80)),
        *((2048, 32, 2.0, "floor", 128), (456, 32, 1.25, "floor", 17)),
        *((456, 32, 1.25, "round", 18), (64, 32, 1.25, "floor", 4), (3, 1, 9.0, "floor", 4)),
    ],
)
def test_capacity_of_the_paper(size, experts, factor, rounding, rows):
    """C = CF * S / E, not times K; at least 4."""
    config = RoutingConfig(
        experts, top_k=min(2, experts), capacity_factor=factor, capacity_rounding=rounding
    )
    assert capacity(config, size, train=True) == rows


def test_uniform_routing_costs_one_and_collapse_costs_the_number_of_experts():
    """L_B = E sum f P: f = P = 1/E gives 1; all tokens on one expert, f = P = 1 there, gives E."""
    experts = 8
    config = RoutingConfig(experts, top_k=1, min_capacity=1)
    even = jnp.tile(30.0 * jnp.eye(experts), (4, 1))[None]
    collapsed = jnp.zeros((1, 32, experts)).at[..., 3].set(60.0)
    for logits, value in ((even, 1.0), (collapsed, float(experts))):
        routing = compiled(config, True)(logits, None, None)
        np.testing.assert_allclose(routing.losses["balance"][0], [value], rtol=1e-6)
    uniform = compiled(RoutingConfig(32, 1), True)(jnp.zeros((1, 64, 32)), None, None)
    np.testing.assert_allclose(uniform.metrics["entropy"][0] / 64, [3.466], atol=5e-4)  # ln 32


def test_float32_softmax_keeps_what_bfloat16_loses():
    """Ten logits 128 and one 128.5: 0.142; rounded to bfloat16 all are equal, 1/11 = 0.091."""
    logits = jnp.full((1, 1, 11), 128.0).at[..., 4].set(128.5)
    config = RoutingConfig(11, top_k=1)
    first = [
        float(compiled(config, True)(x, None, None).gates[0, 0, 0])
        for x in (logits, logits.astype(jnp.bfloat16))
    ]
    np.testing.assert_allclose(first, [0.142, 0.091], atol=5e-4)


@pytest.mark.parametrize("tried", [{}, {"later_balance_weight": 0.5, "entropy_loss_weight": 0.3}])
def test_losses_have_the_gradients_of_finite_differences(tried):
    weights = {"balance_loss_weight": 1.0, "z_loss_weight": 0.1} | tried
    config = RoutingConfig(5, **weights, second_policy="all")
    rng = np.random.default_rng(0)
    # Half apart from each other, so that no choice changes within a step.
    logits = rng.permuted(np.tile(0.5 * np.arange(5), (2, 12, 1)), axis=-1)
    direction = rng.normal(size=logits.shape)

    def loss(logits):
        routing = route(logits, config, train=True)
        return auxiliary_loss(jax.tree.map(lambda v: v.sum(0), routing.losses), config)

    run = jax.jit(
        jax.value_and_grad(loss),
        compiler_options={
            "xla_backend_optimization_level": 0,
            "xla_llvm_disable_expensive_passes": True,
        },
    )
    slope = float(jnp.vdot(run(jnp.float32(logits))[1], direction))
    step = 1e-2
    ahead, behind = (float(run(jnp.float32(logits + s * direction))[0]) for s in (step, -step))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-3)


def test_losses_of_even_and_of_certain_routers():
    """Uniform probabilities have the entropy ln E, and cost 0 by it; a certain router costs ln E.
    Choices that are even at every place cost 1 by each balance loss, K = 3: 1 + 0.5 + 0.5.
    """
    config = RoutingConfig(4, 3, later_balance_weight=0.5, second_policy="all")
    turns = np.stack([np.roll(np.arange(4), s) for s in range(4)])  # every expert at every place
    for scale, entropy in ((0.0, 0.0), (200.0, np.log(4))):
        losses = compiled(config, True)(np.float32(scale * turns)[None], None, None).losses
        np.testing.assert_allclose(losses["entropy"][0] / 4, [entropy], atol=1e-5)
    losses = compiled(config, True)(np.float32(1e-3 * turns)[None], None, None).losses
    np.testing.assert_allclose(losses["balance"][0], [2.0], rtol=1e-5)


def test_a_loss_of_entropy_spreads_a_router_and_costs_nothing_without_weight():
    logits = np.random.default_rng(3).normal(size=(1, 16, 4)).astype(np.float32)

    def of(weight):
        config = RoutingConfig(
            4, 2, z_loss_weight=0.0, balance_loss_weight=0.0, entropy_loss_weight=weight
        )
        step = functools.partial(route, config=config, train=False)
        return jax.value_and_grad(lambda x: auxiliary_loss(step(x).losses, config))

    (value, gradient), (nothing, still) = (jax.jit(of(weight))(logits) for weight in (0.5, 0.0))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = -(probs * np.log(probs)).sum(-1)
    np.testing.assert_allclose(value, 0.5 * (np.log(4) - entropy).mean(), rtol=1e-5)
    # Of sum p ln p: p_i (ln p_i + H), divided by the tokens.
    expected = 0.5 * probs * (np.log(probs) + entropy[..., None]) / 16
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    assert nothing == 0
    assert not np.any(still)


def test_losses_of_layers_add_up_or_average():
    losses = {
        "balance": (jnp.array([2.0, 6.0]), jnp.array([2.0, 2.0])),  # 1 and 3
        "z": (jnp.array([10.0, 30.0]), jnp.array([10.0, 10.0])),  # 1 and 3
        "nonfinite": (jnp.zeros(2), jnp.array([10.0, 10.0])),
    }
    config = RoutingConfig(4, balance_loss_weight=0.01, z_loss_weight=0.001)
    np.testing.assert_allclose(auxiliary_loss(losses, config), 4 * 0.011, rtol=1e-6)
    mean = dataclasses.replace(config, loss_reduction="mean")
    np.testing.assert_allclose(auxiliary_loss(losses, mean), 2 * 0.011, rtol=1e-6)


def test_experts_choose_their_likeliest_tokens():
    config = RoutingConfig(4, router="experts_choose", capacity_factor=1.0, min_capacity=1)
    logits = np.random.default_rng(2).normal(size=(2, 12, 4)).astype(np.float32)
    mask = np.ones((2, 12), bool)
    mask[1, 2:] = False  # two tokens for three rows
    routing = compiled(config, True)(logits, mask, None)
    for g in range(2):
        probs = np.stack([oracle.softmax(x) for x in logits[g]]) * mask[g][:, None]
        for e in range(4):
            best = sorted(np.flatnonzero(mask[g]), key=lambda s: -probs[s, e])[:3]
            source = np.asarray(routing.source[e, g])
            want = [e * 12 + s for s in best] + [48] * (3 - len(best))
            assert source.tolist() == want
            chosen = np.isin(np.arange(12), best)
            np.testing.assert_allclose(routing.gates[g, :, e], probs[:, e] * chosen, rtol=1e-6)
            slots = [e * 3 + best.index(s) if s in best else 12 for s in range(12)]
            assert routing.slot[g, :, e].tolist() == slots
    assert float(routing.losses["balance"][0].sum()) == 0.0


def test_the_gates_of_experts_that_choose_have_the_gradient_of_their_scores():
    config = RoutingConfig(4, router="experts_choose", capacity_factor=1.0, min_capacity=1)
    rng = np.random.default_rng(3)
    logits, weights = rng.normal(size=(2, 2, 12, 4)).astype(np.float32)
    taken = np.asarray(route(logits, config, train=True).placed)

    def mass(logits):
        return jnp.sum(weights * route(logits, config, train=True).gates)

    def of_scores(logits):
        return jnp.sum(weights * jnp.where(taken, jax.nn.softmax(logits), 0.0))

    want = jax.grad(of_scores)(logits)
    np.testing.assert_allclose(jax.jit(jax.grad(mass))(logits), want, rtol=1e-5, atol=1e-7)
    assert float(jnp.abs(want).max()) > 0.01


def test_sampled_experts_follow_the_softmax_of_the_temperature():
    """4000 tokens of the same logits; the gates stay probabilities at temperature 1."""
    logits, size = np.array([1.0, 0.0, -1.0]), 4000
    config = RoutingConfig(3, 1, sample_temperature=2.0, capacity_factor=3.0)
    noise = np.random.default_rng(0).gumbel(size=(1, size, 3)).astype(np.float32)
    run = functools.partial(route, config=config, train=True)
    routing = jax.jit(run)(np.tile(logits, (1, size, 1)), gumbel=noise)
    share, expected = routing.metrics["load"][0][0] / size, oracle.softmax(logits / 2)
    assert np.all(np.abs(share - expected) < 4 * (expected * (1 - expected) / size) ** 0.5)
    chosen = np.asarray(routing.expert[0, :, 0])
    np.testing.assert_allclose(routing.gates[0, :, 0], oracle.softmax(logits)[chosen], rtol=1e-6)


def test_every_metric_is_explained():
    run = functools.partial(route, config=RoutingConfig(4, 1), train=True)
    routing = jax.eval_shape(run, jnp.zeros((1, 8, 4)))
    assert set(routing.metrics) == set(METRICS)


@pytest.mark.parametrize(
    ("options", "sequences", "length", "tokens"),
    [
        ({"group_sequences": 4}, 8, 512, 2048),  # the paper's encoder groups ...
        ({"group_sequences": 4}, 8, 114, 456),  # ... and its decoder groups
        ({"group_size": 64}, 2, 96, 64),
        ({}, 8, 512, 4096),
        ({}, 9, 456, 2052),  # 4104 tokens: half of them is the largest divisor up to 4096
        ({"max_group_size": 7}, 1, 15, 5),
    ],
)
def test_group_sizes(options, sequences, length, tokens):
    assert tokens_per_group(RoutingConfig(4, **options), sequences, length) == tokens


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group_size": 60}, ["group_size=60", "128 tokens", "32"]),
        ({"group_sequences": 3}, ["group_sequences=3", "4 sequences", "below that does is 2"]),
    ],
)
def test_a_group_size_that_does_not_divide_is_named(options, words):
    with pytest.raises(ConfigError) as error:
        tokens_per_group(RoutingConfig(4, **options), 4, 32)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 5}, "top_k=5 is more than routing.num_experts=4"),
        ({"top_k": 0}, "top_k=0"),
        ({"capacity_factor": 0.0}, "capacity_factor=0"),
        ({"capacity_factor": float("nan")}, "capacity_factor=nan"),
        ({"second_policy": "randm"}, "Did you mean 'random'"),
        ({"dispatch": "einsum"}, "index, dropless, grouped"),
        ({"group_size": 8, "group_sequences": 1}, "Leave one"),
        ({"router": "experts_choose", "dispatch": "dropless"}, "dispatch='index'"),
        ({"partitioner": "automatic", "dispatch": "dropless"}, "partitioner='shard_map'"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"top_k": 1, "later_balance_weight": 0.5}, "top_k=1 .* there are none"),
        ({"router": "experts_choose", "later_balance_weight": 0.5}, "there are none"),
    ],
)
def test_options_that_cannot_work_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        RoutingConfig(**{"num_experts": 4, **options})


def test_capacity_below_one_is_named():
    config = RoutingConfig(64, capacity_factor=0.5, min_capacity=0)
    with pytest.raises(ConfigError, match=r"capacity_factor=0\.5 gives 0\.25 rows .* 64 experts"):
        capacity(config, 32, train=True)


@pytest.mark.parametrize("options", [{"batch_prioritized": True}, {"router": "experts_choose"}])
def test_a_decoder_may_not_see_its_future(options):
    with pytest.raises(ConfigError, match="causal"):
        RoutingConfig(4, **options).check_causal()
