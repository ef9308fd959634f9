"""The sparse layer with the options of today's routers: against a layer in NumPy, in all
dispatches, on 1 and 8 devices, values and gradients.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.conformance import oracle
from moe.layers.ffn import FeedForward
from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig
from moe.routing.losses import auxiliary_loss
from tests.moe.layers.test_sparse import ALL_AXES, B, D, E, F, L
from tests.moe.meshes import QUICK, RULES, close, run
from trainlib.model import weights as nn
from trainlib.sharding.kernels import use_kernels

SHARED = 2
ALL_RULES = RULES | {"layer_batch": ("replica", "data"), "embed": None, "mlp": "model"}
# All options of DeepSeek-V3 at once, groups of one sequence; most later choices are dropped.
TIGHT = RoutingConfig(
    *(E, 3),
    scores="sigmoid",
    gate_scale=1.5,
    balance_bias=True,
    expert_groups=4,
    groups_per_token=2,
    balance_over="batch",
    balance_choices="all",
    second_policy="all",
    min_capacity=1,
    group_sequences=1,
    balance_loss_weight=1.0,
    z_loss_weight=0.1,
)
ROOMY = dataclasses.replace(TIGHT, capacity_factor=float(E), balance_over="sequence")


@functools.cache
def made(config):
    """The abstract layer, its weights with those of shared experts, bias, x, mask, cotangent."""
    spec = nn.abstract(SparseFFN(D, F, config, shared_experts=SHARED))
    rng = np.random.default_rng(0)
    params = {
        n: np.float32(rng.normal(size=s.shape) * s.shape[-2] ** -0.5)
        for n, s in sorted(spec.params.items())
    }
    state = {n: np.float32(0.2 * rng.normal(size=s.shape)) for n, s in spec.model_state.items()}
    x, dy = np.float32(rng.normal(size=(2, B, L, D)))
    mask = np.arange(L) < rng.integers(1, L + 1, (B, 1))
    return spec, params, state, x, mask, dy


@functools.cache
def result(config, shape=None):
    """(loss, (output, metrics)), gradients of weights and x, on a mesh of `shape`."""
    spec, params, state, x, mask, dy = made(config)

    def loss(params, x, state):
        y, out = spec.bind(params, state)(x, mask, train=True)
        total = jnp.vdot(y, dy) + auxiliary_loss(out.losses, config)
        return total, (y, out.metrics)

    step = jax.value_and_grad(loss, (0, 1), has_aux=True)
    return run(step, spec, params, x, state, shape=shape, rules=ALL_RULES)


def geglu(x, gate, up, down):
    """One expert on one token, [D] -> [D]."""
    h = x @ gate
    h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return h * (x @ up) @ down


def by_hand(config):
    """(loss, output, choices sent to each expert) token by token, in float64."""
    _, params, state, x, mask, dy = made(config)
    weights = {n: np.float64(v) for n, v in params.items()}
    bias, x = np.float64(state["balance_bias"]), np.float64(x)
    shared = [weights[f"shared.{n}"] for n in ("gate", "up", "down")]
    y, logits = np.zeros_like(x), x @ weights["router"]
    load, z, tokens = np.zeros(E), 0.0, 0
    for g in range(B):
        routed = oracle.route_group(logits[g], mask[g], np.zeros((L, 2)), config, True, bias)
        load = load + routed.metrics["load"][0]
        z, tokens = z + routed.losses["z"][0], tokens + routed.losses["z"][1]
        for s in range(L):
            y[g, s] = geglu(x[g, s], *shared)
            for place, gate in zip(routed.assignment[s], routed.gates[s], strict=True):
                if isinstance(place, tuple):
                    one = [weights[n][place[0]] for n in ("gate", "up", "down")]
                    y[g, s] += gate * geglu(x[g, s], *one)
    total, count = oracle.balance(logits, mask, config, bias, L)
    loss = (y * dy).sum() + total / count + 0.1 * z / tokens
    return loss, y, load


@pytest.mark.thorough
@pytest.mark.parametrize("config", [TIGHT, ROOMY], ids=["tight, batch", "roomy, sequence"])
def test_the_layer_is_its_rules(config):
    (loss, (y, metrics)), _ = result(config)
    want, output, load = by_hand(config)
    close((y, metrics["load"][0]), (output, load), 1e-5)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert (metrics["dropped_choices"][0] > 0) == (config is TIGHT)


def test_gradients_are_those_of_finite_differences_of_the_rules():
    """Along a random direction of all weights; the bias is no weight and has no gradient."""
    _, params, _, *_ = made(TIGHT)
    _, (gradients, _) = result(TIGHT)
    assert set(gradients) == {"router", "gate", "up", "down"} | {
        f"shared.{name}" for name in ("gate", "up", "down")
    }
    rng = np.random.default_rng(3)
    direction = {n: rng.normal(size=v.shape) for n, v in params.items() if n != "router"}
    slope = sum(float(np.vdot(gradients[n], d)) for n, d in direction.items())
    original, values = dict(params), []
    for sign in (1, -1):
        # The shared weights of the cached case: they are put back below.
        params.update({n: original[n] + sign * 1e-3 * d for n, d in direction.items()})
        values.append(by_hand(TIGHT)[0])
    params.update(original)
    np.testing.assert_allclose(slope, (values[0] - values[1]) / 2e-3, rtol=2e-3)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "shape", [(1, 8, 1), pytest.param(ALL_AXES, marks=pytest.mark.thorough)], ids=str
)
@pytest.mark.parametrize("config", [TIGHT, ROOMY], ids=["batch", "sequence"])
def test_it_is_the_same_on_eight_devices(config, shape):
    close(result(config, shape), result(config))


@pytest.mark.slow
def test_all_dispatches_and_partitioners_give_the_same():
    close(result(dataclasses.replace(ROOMY, dispatch="dropless"), (1, 8, 1)), result(ROOMY))
    close(result(dataclasses.replace(TIGHT, partitioner="automatic"), (1, 8, 1)), result(TIGHT))


@pytest.mark.thorough
@pytest.mark.sample(1)
@pytest.mark.parametrize("over", ["sequence", "batch"])
@pytest.mark.parametrize("shape", [None, (1, 8, 1), ALL_AXES], ids=str)
def test_grouped_products_give_the_same(over, shape):
    """By the kernels of a TPU, interpreted."""
    roomy = dataclasses.replace(ROOMY, balance_over=over)
    with use_kernels("interpret"):
        got = result(dataclasses.replace(roomy, dispatch="grouped"), shape)
    close(got, result(roomy))


def test_shared_experts_are_a_dense_layer_beside_the_others():
    """With routed experts that give nothing the layer is that dense layer, bit for bit."""
    spec, params, state, x, mask, _ = made(ROOMY)
    silent = params | {"down": np.zeros_like(params["down"])}
    dense = nn.abstract(FeedForward(D, SHARED * F))
    alone = {n: params[f"shared.{n}"] for n in ("gate", "up", "down")}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(silent, alone):
        y, _ = spec.bind(silent, state)(x, mask)
        return y, dense.bind(alone, {})(x)

    np.testing.assert_array_equal(*both(silent, alone))


@pytest.mark.thorough
def test_a_loop_of_ones_own_moves_the_bias():
    """`rebalance` follows the rule, and evaluation and gradients leave the bias as it is."""
    layer = SparseFFN(D, F, TIGHT, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(B, L, D)).astype(np.float32)

    @nnx.jit
    def step(layer, x):
        _, out = layer(x, train=True)
        layer.rebalance(out)
        return out.metrics["load"][0]

    want = np.zeros(E)
    for _ in range(2):
        load = step(layer, x)
        want = oracle.moved_bias(want, np.asarray(load), 0.001)
    np.testing.assert_allclose(layer.balance_bias[...], want, atol=1e-7)
    assert np.abs(want).max() > 0
    before = np.asarray(layer.balance_bias[...])
    layer(x)
    np.testing.assert_array_equal(layer.balance_bias[...], before)
