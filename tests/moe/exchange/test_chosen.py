"""Experts on a few tokens against all experts on all tokens, and what the programs read."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.exchange import chosen
from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig
from tests.moe.meshes import QUICK
from trainlib.model import weights as nn
from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve_specs

RULES = {
    **{"batch": ("replica", "data", "model"), "expert": "data", "expert_embed": None},
    **{"expert_mlp": "model", "router": None},
}
D, F, E, P = 8, 10, 8, 3
TWO = RoutingConfig(E, capacity_factor_eval=float(E), min_capacity=1, group_sequences=1)
DROPLESS = RoutingConfig(E, dispatch="dropless")  # groups of all tokens
EXPERTS = ("gate", "up", "down", "bias")


@functools.cache
def stacked(routing, **options):
    """The layer and the weights of P of them, the router's of one."""
    layer = nn.abstract(SparseFFN(D, F, routing, init_scale=2.0, **options))
    random = np.random.default_rng(0)
    params = {
        name: np.float32(random.normal(size=(P, *spec.shape)) * spec.shape[-2] ** -0.5)
        for name, spec in sorted(layer.params.items())
    }
    return layer, params | {"router": params["router"][1]}


def outputs(routing, x, period, mask=None, seen=None, **options):
    """[B, 1, D] of the weights of one period: as stacks, or (None) cut out before."""
    layer, params = stacked(routing, **options)
    key = jax.random.key(3)
    if period is None:
        params = {n: p[1] if n in EXPERTS else p for n, p in params.items()}

    def run(params, x, mask):
        bound = layer.bind(params, {})
        return bound(x, mask, key, router_input=seen, period=period)[0]

    return np.float32(jax.jit(run, compiler_options=QUICK)(params, x, mask))


def tokens(batch, dtype="float32", seed=1):
    x = np.random.default_rng(seed).normal(size=(batch, 1, D))
    return jnp.asarray(x, dtype)


@pytest.mark.sample(5)
@pytest.mark.parametrize("batch", [1, 2, 5, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_chosen_experts_are_all_experts(batch, dtype, top_k):
    """Rows of an expert fill one product or several, and a loop ends where nobody chose more."""
    routing, x = dataclasses.replace(TWO, top_k=top_k), tokens(batch, dtype)
    assert chosen.pays(batch * top_k, E)
    limit = 1e-6 if dtype == "float32" else 0.02
    want = outputs(routing, x, None)
    np.testing.assert_allclose(outputs(routing, x, 1), want, rtol=0, atol=limit)
    assert np.abs(want).max() > 0.1


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "routing",
    [
        *(
            dataclasses.replace(TWO, second_policy_eval=policy)
            for policy in ("none", "threshold", "random", "if_dropped")
        ),
        DROPLESS,
        dataclasses.replace(TWO, normalize_gates=False, logit_clip=0.5),
        dataclasses.replace(TWO, router_dtype="bfloat16"),
    ],
    ids=["none", "threshold", "random", "if_dropped", "dropless", "raw", "narrow"],
)
def test_whatever_the_router_does(routing):
    x = tokens(6)
    got, want = (outputs(routing, x, period) for period in (1, None))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ["geglu", "relu"])
@pytest.mark.parametrize("bias", ["additive", "multiplicative"])
def test_whatever_the_experts_compute(activation, bias):
    x = tokens(5)
    got, want = (
        outputs(TWO, x, period, activation=activation, expert_bias=bias) for period in (1, None)
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_the_router_may_see_the_words():
    x, seen = tokens(5), tokens(5, seed=2)
    got, want, other = (
        outputs(TWO, x, period, seen=what) for period, what in ((1, seen), (None, seen), (1, None))
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    assert np.abs(got - other).max() > 0.1


def test_all_tokens_choose_one_expert():
    """Ten rows of one expert, which several products take one after the other."""
    routing, x = dataclasses.replace(TWO, top_k=1), jnp.tile(tokens(1), (10, 1, 1))
    got, want = (outputs(routing, x, period) for period in (1, None))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_padding_and_what_is_not_finite_are_sent_nowhere():
    x = tokens(5).at[1].set(jnp.nan)
    mask = jnp.asarray([[True], [True], [False], [True], [True]])
    got = outputs(TWO, x, 1, mask)
    assert not got[1:3].any()
    np.testing.assert_allclose(got[[0, 3, 4]], outputs(TWO, tokens(5), 1)[[0, 3, 4]], atol=1e-6)
    assert not outputs(TWO, x, 1, jnp.zeros((5, 1), bool)).any()


def program(experts, batch, period=1, dtype=jnp.float32):
    """The compiled layer of 16 x 24, three periods, on a batch."""
    routing = dataclasses.replace(TWO, num_experts=experts, capacity_factor_eval=float(experts))
    layer = nn.abstract(SparseFFN(16, 24, routing))
    stack = {n: (P, *s.shape) if n in EXPERTS else s.shape for n, s in layer.params.items()}
    params = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in stack.items()}
    x = jax.ShapeDtypeStruct((batch, 1, 16), dtype)

    def run(params, x):
        own = {n: p[1] if n in EXPERTS and period is None else p for n, p in params.items()}
        return layer.bind(own, {})(x, period=period)[0]

    return jax.jit(run).lower(params, x).compile()


def made(compiled, experts):
    """Operations that make an array of the size of all experts of a period, or of all periods."""
    array = rf" = \w+\[(?:{P},|1,)?{experts},(?:16,24|24,16)\]\S* (\S+?)\("
    free = {"parameter", "get-tuple-element", "bitcast"}
    return [op for op in re.findall(array, compiled.as_text()) if op not in free]


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 8])
def test_no_more_is_read_than_what_was_chosen(dtype, batch):
    """Nothing of all experts is copied, sliced or rounded, and sixteen times as many experts cost
    the router's weights alone.
    """
    few, many = (program(experts, batch, dtype=dtype) for experts in (16, 256))
    assert not made(few, 16)
    assert not made(many, 256)
    read = [p.cost_analysis()["bytes accessed"] for p in (few, many)]
    experts = 3 * 16 * 24 * 4 * (256 - 16)  # bytes by which the weights grow in one period
    assert read[1] - read[0] < 0.2 * experts
    room = [p.memory_analysis().temp_size_in_bytes for p in (few, many)]
    assert room[1] - room[0] < 0.1 * experts


def test_the_gate_above_sees_what_it_forbids():
    """All experts on all tokens, which is also what many tokens get."""
    assert made(program(16, 8, None), 16)
    assert made(program(16, 65), 16)


def test_many_choices_are_computed_by_all_experts():
    assert chosen.pays(8 * E, E)
    assert not chosen.pays(8 * E + 1, E)
    x = tokens(40)
    got, want = (outputs(TWO, x, period) for period in (1, None))
    np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=["whole experts", "split experts"])
def test_eight_devices_are_one(shape):
    """Each has all experts and reads what its own tokens chose, or tokens go to their experts."""
    layer, params = stacked(TWO)
    x = tokens(16)
    mesh = make_mesh(*shape, devices=jax.devices())
    placed = resolve_specs(layer.params, RULES, mesh)

    def stack(name, value):
        spec = placed[name].spec
        parts = (None, *spec) if name in EXPERTS else spec
        return jax.device_put(
            value, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*parts))
        )

    def run(params, x):
        with activate(mesh, RULES):
            return layer.bind(params, {})(x, period=1)[0]

    split = {name: stack(name, value) for name, value in params.items()}
    on_mesh = jax.jit(run, compiler_options=QUICK)
    lowered = on_mesh.lower(split, jax.device_put(x, batch_sharding(RULES, mesh)))
    assert ("stablehlo.while" in lowered.as_text()) == (shape == (8, 1, 1))
    got = on_mesh(split, jax.device_put(x, batch_sharding(RULES, mesh)))
    np.testing.assert_allclose(np.asarray(got), outputs(TWO, x, None), rtol=0, atol=1e-6)
