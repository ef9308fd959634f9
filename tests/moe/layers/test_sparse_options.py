"""Options of the sparse layer that ST-MoE reports as without gain (appendix J), against the layer
written out with gathers and one-hot einsums, values and gradients, on one device and on eight.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels.batched import batched
from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig
from moe.routing.losses import auxiliary_loss
from moe.routing.route import route
from tests.moe.meshes import QUICK, close, run
from tests.moe.routing.one_hot import one_hot_layer
from trainlib.model import weights as nn
from trainlib.sharding.kernels import use_kernels

B, L, D, F, E, N = 8, 12, 8, 10, 8, 3
KEY = jax.random.key(5)

# Groups of one sequence, so that a group stays whole on every mesh; capacity for a few choices.
ALL = RoutingConfig(
    E,
    min_capacity=1,
    group_sequences=1,
    second_policy="all",
    balance_loss_weight=1.0,
    later_balance_weight=0.5,
    z_loss_weight=0.1,
    entropy_loss_weight=0.3,
    whole_expert_dropout=0.4,
)
ROOMY = dataclasses.replace(ALL, capacity_factor=float(E))
OPTIONS = {"router_history": N, "expert_embedding": True}


@functools.cache
def made():
    """The abstract layer, weights and inputs: x, mask of odd lengths, times, cotangent."""
    spec = nn.abstract(SparseFFN(D, F, ALL, **OPTIONS))
    rng = np.random.default_rng(0)
    params = {
        n: np.float32(rng.normal(size=s.shape) * s.shape[-2] ** -0.5)
        for n, s in sorted(spec.params.items())
    }
    x, dy = np.float32(rng.normal(size=(2, B, L, D)))
    mask = np.arange(L) < rng.integers(1, L + 1, (B, 1))
    times = rng.integers(0, N, (B, L)).astype(np.int32)
    return params, x, mask, times, dy


def layer(config=ALL, **options):
    return nn.abstract(SparseFFN(D, F, config, **OPTIONS | options))


def step_of(config, apply):
    """((loss, (y, taken, metrics)), gradients of weights and x) of `apply(params, x)`."""
    dy = made()[-1]

    def loss(params, x):
        y, out = apply(params, x)
        total = jnp.vdot(y, dy) + auxiliary_loss(out[0], config)
        return total, (y, *out[1:])

    return jax.value_and_grad(loss, (0, 1), has_aux=True)


@functools.cache
def result(config=ALL, shape=None):
    """The layer on a mesh of `shape`."""
    params, x, mask, times, _ = made()
    spec = layer(config)

    def apply(params, x):
        y, out = spec.bind(params, {})(x, mask, KEY, train=True, times=times)
        return y, (out.losses, out.taken, out.metrics)

    return run(step_of(config, apply), spec, params, x, shape=shape)


@functools.cache
def expected(config=ALL):
    """The same written out, group by group: gathers of rows, gates by hand, one-hot dispatch."""
    params, x, mask, times, _ = made()
    alive = jax.random.bernoulli(jax.random.fold_in(KEY, 6), 1 - config.whole_expert_dropout, (E,))
    assert 0 < alive.sum() < E, "some of the experts are dropped"
    quiet = dataclasses.replace(config, whole_expert_dropout=0.0)

    def apply(params, x):
        seen = x + params["router_history"][times]
        routed = route(seen @ params["router"], quiet, train=True, mask=mask)
        placed = routed.slot < E * routed.capacity
        scale = jnp.append(alive / (1 - config.whole_expert_dropout), 0.0)
        gates = routed.gates * scale[routed.expert]
        weights = {n: params[n] for n in ("gate", "up", "down")}

        def experts(buffer):
            return batched(buffer, weights, "none", None)

        y = [
            one_hot_layer(x[g], routed.slot[g], gates[g], experts, E, routed.capacity)
            for g in range(B)
        ]
        table = params["expert_embedding"]
        rows = jnp.sum(gates[..., None] * table[routed.expert], axis=2)
        dropped = mask & ~placed.any(-1)
        y = jnp.stack(y) + rows + jnp.where(dropped[..., None], table[E], 0.0)
        losses, metrics = jax.tree.map(lambda v: v.sum(0), (routed.losses, routed.metrics))
        metrics["gate_mass"] = jnp.sum(gates), metrics["gate_mass"][1]
        return y, (losses, placed.any(-1), metrics)

    return jax.device_get(jax.jit(step_of(config, apply), compiler_options=QUICK)(params, x))


def test_the_options_are_what_they_say():
    """All at once; some tokens are dropped, and every table has a gradient."""
    got = result()
    close(got, expected())
    (_, (_, taken, metrics)), (gradients, _) = got
    assert 0 < metrics["dropped_tokens"][0] < metrics["dropped_tokens"][1]
    assert not taken[~made()[2]].any()
    assert all(np.abs(gradients[n]).any() for n in ("router_history", "expert_embedding"))


@pytest.mark.parametrize("shape", [(1, 8, 1), pytest.param((2, 2, 2), marks=pytest.mark.thorough)])
def test_the_options_are_the_same_on_eight_devices(shape):
    close(result(shape=shape), expected())


def test_the_options_work_without_capacity():
    close(result(dataclasses.replace(ROOMY, dispatch="dropless")), expected(ROOMY))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [None, (1, 8, 1), (2, 2, 2)], ids=str)
def test_the_options_work_with_grouped_products(shape):
    """By the kernels of a TPU, interpreted."""
    with use_kernels("interpret"):
        got = result(dataclasses.replace(ROOMY, dispatch="grouped"), shape)
    close(got, expected(ROOMY))


@functools.partial(jax.jit, compiler_options=QUICK)
def evaluated(params, times):
    """Evaluation with the tables and with tables of 0, and without them."""
    _, x, mask, _, _ = made()
    plain = nn.abstract(SparseFFN(D, F, ALL))
    zeroed = params | {n: 0 * params[n] for n in ("router_history", "expert_embedding")}
    alone = {n: params[n] for n in plain.params}
    return (
        layer().bind(params, {})(x, mask, times=times),
        layer().bind(zeroed, {})(x, mask, times=times),
        plain.bind(alone, {})(x, mask),
    )


def test_tables_of_zero_are_the_layer_without_them_and_evaluation_drops_no_expert():
    """As they begin; a token of another history goes elsewhere, another token's output stays."""
    params, _, mask, times, _ = made()
    spec = layer()
    fresh = nn.initialise(spec.params, jax.random.key(0))
    assert not fresh["router_history"].any()
    assert not fresh["expert_embedding"].any()
    with_tables, zeroed, plain = evaluated(params, times)
    np.testing.assert_array_equal(zeroed[0], plain[0])
    close(zeroed[1].metrics, plain[1].metrics)
    assert np.abs(with_tables[0] - plain[0])[mask].max() > 0.1
    assert not np.any(with_tables[0][~mask])
    other = times.copy()
    other[0] = (times[0] + 1) % N
    again = evaluated(params, other)[0]
    np.testing.assert_array_equal(again[0][1:], with_tables[0][1:])
    assert np.abs(again[0][0] - with_tables[0][0]).max() > 1e-3


def test_a_missing_key_is_named_by_the_option():
    routing = RoutingConfig(E, second_policy="all", whole_expert_dropout=0.1)
    spec = nn.abstract(SparseFFN(D, F, routing))
    params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), spec.params)
    x = made()[1]
    with pytest.raises(ValueError, match=r"whole_expert_dropout=0\.1 of its routing"):
        jax.eval_shape(lambda p: spec.bind(p, {})(x, train=True), params)
