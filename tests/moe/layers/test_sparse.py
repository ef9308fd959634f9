"""The sparse layer against one-hot einsums, in three dispatches and on meshes of 1 to 8 devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels.batched import batched
from moe.layers.ffn import FeedForward
from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig, capacity
from moe.routing.losses import auxiliary_loss
from moe.routing.metrics import METRICS
from moe.routing.placement import Placement, group_tokens, resolve_placement
from moe.routing.route import route
from tests.moe.meshes import QUICK, RULES, close, run
from tests.moe.routing import one_hot
from trainlib.errors import ConfigError
from trainlib.model import weights as nn
from trainlib.sharding.mesh import make_mesh

B, L, D, F, E = 8, 12, 8, 10, 8

# Groups of one sequence, so that a group stays whole on every mesh; most second choices dropped.
TIGHT = RoutingConfig(
    E, min_capacity=1, group_sequences=1, balance_loss_weight=1.0, z_loss_weight=0.1
)
# Room for everything: the three dispatches then compute the same.
ROOMY = dataclasses.replace(TIGHT, capacity_factor=float(E))


@functools.cache
def made(config, **options):
    """The abstract layer, weights and inputs: x, mask of odd lengths, cotangent."""
    spec = nn.abstract(SparseFFN(D, F, config, init_scale=2.0, **options))
    rng = np.random.default_rng(0)
    params = {
        n: np.float32(rng.normal(size=s.shape) * s.shape[-2] ** -0.5)
        for n, s in sorted(spec.params.items())
    }
    x, dy = np.float32(rng.normal(size=(2, B, L, D)))
    mask = np.arange(L) < rng.integers(1, L + 1, (B, 1))
    return spec, params, x, mask, dy


@functools.cache
def result(config, shape=None, dtype="float32", **options):
    """(loss, output), gradients of weights and x, and metrics, on a mesh of `shape`."""
    spec, params, x, mask, dy = made(config, **options)
    key = jax.random.key(5)

    def loss(params, x):
        y, out = spec.bind(params, {})(x.astype(dtype), mask, key, train=True)
        total = jnp.vdot(y.astype(jnp.float32), dy) + auxiliary_loss(out.losses, config)
        return total, (y, out.metrics)

    def step(params, x):
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    return run(step, spec, params, x, shape=shape)


@functools.cache
def einsum_result(config, form="none"):
    """The same with one-hot einsums, group by group, on one device."""
    _, params, x, mask, dy = made(config, expert_bias=form)
    draws = jax.random.uniform(jax.random.fold_in(jax.random.key(5), 0), (B, L, config.top_k - 1))

    def loss(params, x):
        routed = route(x @ params["router"], config, train=True, mask=mask, draws=draws)
        weights = {n: p for n, p in params.items() if n != "router"}
        rows = routed.source.shape[-1]

        def experts(buffer):
            return batched(buffer, weights, form, None)

        y = jnp.stack(
            [
                one_hot.one_hot_layer(x[g], routed.slot[g], routed.gates[g], experts, E, rows)
                for g in range(B)
            ]
        )
        losses, metrics = jax.tree.map(lambda v: v.sum(0), (routed.losses, routed.metrics))
        return jnp.vdot(y, dy) + auxiliary_loss(losses, config), (y, metrics)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), compiler_options=QUICK)
    return jax.device_get(step(params, x))


@pytest.mark.slow
@pytest.mark.parametrize("config", [TIGHT, ROOMY], ids=["tight", "roomy"])
def test_index_dispatch_equals_one_hot_einsums(config):
    got = result(config)
    close(got, einsum_result(config))
    dropped, sent = got[0][1][1]["dropped_choices"]
    assert (dropped > 0) == (config is TIGHT), (dropped, sent)


DATA_MESHES = [None, (1, 2, 1), (1, 4, 1), (1, 8, 1)]
ALL_AXES = (2, 2, 2)  # two replicas, two rows, two columns


@pytest.mark.sample(3)
@pytest.mark.parametrize("shape", DATA_MESHES)
def test_index_dispatch_is_the_same_on_any_rows(shape):
    """Eight experts on 1, 2, 4 and 8 devices; the random policy on, and most choices dropped."""
    close(result(TIGHT, shape), einsum_result(TIGHT))


@pytest.mark.slow
def test_index_dispatch_is_the_same_with_replicas_and_columns():
    """With a bias, which lies over rows and columns too."""
    got = result(TIGHT, ALL_AXES, expert_bias="multiplicative")
    close(got, einsum_result(TIGHT, "multiplicative"))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "shape",
    [
        DATA_MESHES[0],
        *(pytest.param(shape, marks=pytest.mark.thorough) for shape in DATA_MESHES[1:]),
        ALL_AXES,
    ],
)
def test_dropless_dispatch_is_the_same_on_any_mesh(shape):
    """It equals the einsum with room for everything."""
    close(result(dataclasses.replace(ROOMY, dispatch="dropless"), shape), einsum_result(ROOMY))


def test_the_automatic_partitioner_gives_the_same():
    automatic = dataclasses.replace(TIGHT, partitioner="automatic")
    close(result(automatic, (1, 8, 1)), einsum_result(TIGHT))


def test_noise_does_not_depend_on_the_mesh():
    """Jitter, router dropout, the random policy and dropout of hidden vectors."""
    config = dataclasses.replace(TIGHT, jitter=0.3, router_dropout=0.2)
    noisy = result(config, expert_dropout=0.4)
    close(result(config, ALL_AXES, expert_dropout=0.4), noisy)
    quiet = result(TIGHT)
    assert np.abs(noisy[0][1][0] - quiet[0][1][0]).max() > 0.1
    assert np.abs(noisy[0][1][1]["entropy"][0] - quiet[0][1][1]["entropy"][0]) > 0.1


@pytest.mark.parametrize("dispatch", ["index", "dropless"])
def test_bfloat16(dispatch):
    """Activations in bfloat16, router and gradients of weights in float32."""
    got, want = (
        result(dataclasses.replace(ROOMY, dispatch=dispatch), dtype="bfloat16"),
        result(ROOMY),
    )
    assert got[0][1][0].dtype == jnp.bfloat16
    assert got[1][0]["up"].dtype == np.float32
    output, reference = (np.float32(r[0][1][0]) for r in (got, want))
    # A token whose choice of experts the rounding changed may differ; few do.
    wrong = np.abs(output - reference).max(-1) > 0.05 * np.abs(reference).max()
    assert wrong.mean() < 0.05


@pytest.mark.parametrize(("router_dtype", "chosen"), [("float32", E - 1), ("bfloat16", 0)])
def test_the_router_is_exact_under_bfloat16_activations(router_dtype, chosen):
    """Logits D (1 + e 2^-12): in bfloat16, with steps of 2^-5 there, all are equal and the first
    expert takes every token; in float32 the last one does.
    """
    config = RoutingConfig(E, 1, capacity_factor=float(E), router_dtype=router_dtype)
    spec, params, *_ = made(config)
    params = params | {"router": np.ones((D, 1), np.float32) + np.float32(2**-12) * np.arange(E)}
    x = jnp.ones((1, 4, D), jnp.bfloat16)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        return spec.bind(params, {})(x, train=False)

    y, out = run(jax.tree.map(np.float32, params))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.metrics["load"][0], 4.0 * (np.arange(E) == chosen))
    spread = 0.0 if router_dtype == "bfloat16" else 2**-9 * (E - 1)
    np.testing.assert_allclose(out.metrics["max_logit"][0] - D, spread, atol=1e-6)


@pytest.mark.parametrize("dispatch", ["index", "dropless"])
def test_one_expert_is_the_dense_layer_bit_for_bit(dispatch):
    config = RoutingConfig(1, 1, capacity_factor=1.0, min_capacity=1, dispatch=dispatch)
    spec, dense = nn.abstract(SparseFFN(D, F, config)), nn.abstract(FeedForward(D, F))
    params = nn.initialise(spec.params, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 16, D))
    alone = {n: params[n][0] for n in ("gate", "up", "down")}

    @jax.jit
    def both(params, alone, x):
        return spec.bind(params, {})(x, train=False)[0], dense.bind(alone, {})(x)

    np.testing.assert_array_equal(*both(params, alone, x))


def test_a_token_that_is_not_finite_touches_only_itself():
    """Its output is 0, the others' are unchanged bit for bit, and the auxiliary loss turns NaN."""
    spec, params, x, mask, _ = made(TIGHT)
    broken = x.copy()
    broken[2, 0] = np.nan
    without = mask.copy()
    without[2, 0] = False

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(x, mask):
        y, out = spec.bind(params, {})(x, mask, train=False)
        return y, out, auxiliary_loss(out.losses, TIGHT)

    (y, out, loss), (want, want_out, want_loss) = run(broken, mask), run(x, without)
    np.testing.assert_array_equal(y, want)
    assert np.all(y[2, 0] == 0)
    assert float(out.metrics["nonfinite"][0]) == 1
    assert float(want_out.metrics["nonfinite"][0]) == 0
    assert np.isnan(loss)
    assert np.isfinite(want_loss)


def test_the_router_may_see_something_else():
    """Routing by word embedding: choices follow `router_input`, values come from x."""
    spec, params, x, mask, dy = made(TIGHT)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(x, seen):
        return spec.bind(params, {})(x, mask, train=False, router_input=seen)

    plain, words, shifted = run(x, x), run(x, dy), run(dy, dy)
    np.testing.assert_array_equal(words[1].metrics["load"][0], shifted[1].metrics["load"][0])
    assert np.any(words[1].metrics["load"][0] != plain[1].metrics["load"][0])


def test_weights_are_declared_with_their_axes():
    spec = nn.abstract(SparseFFN(D, F, TIGHT, activation="relu", expert_bias="multiplicative"))
    shapes = {n: (s.shape, s.axes) for n, s in spec.params.items()}
    assert shapes == {
        "router": ((D, E), ("expert_embed", "router")),
        "up": ((E, D, F), ("expert", "expert_embed", "expert_mlp")),
        "down": ((E, F, D), ("expert", "expert_mlp", "expert_embed")),
        "bias": ((E, F), ("expert", "expert_mlp")),
    }
    weights = nn.initialise(spec.params, jax.random.key(0))
    # sigma = sqrt(0.1 / D), cut at two sigma: 0.88 of it is left.
    np.testing.assert_allclose(weights["up"].std(), 0.88 * (0.1 / D) ** 0.5, rtol=0.1)
    assert np.all(weights["bias"] == 1)


def test_every_metric_is_a_total_and_a_count():
    metrics = result(TIGHT)[0][1][1]
    assert set(metrics) == set(METRICS)
    assert metrics["load"][0].shape == (E,)
    assert all(np.shape(v) == () for n, p in metrics.items() for v in p if n != "load")


def mesh_error(match, config=TIGHT, rules=RULES, shape=(1, 8, 1)):
    with pytest.raises(ConfigError, match=match):
        resolve_placement(make_mesh(*shape), rules, config)


def test_meshes_that_do_not_fit_are_named_before_anything_is_compiled():
    uneven = dataclasses.replace(TIGHT, num_experts=12)
    mesh_error(r"num_experts=12 does not divide over the 8 rows.*mesh\.data=4", uneven)
    mesh_error(
        r"'batch' -> \('replica', 'data', 'model'\)",
        rules=RULES | {"batch": ("replica", "data")},
        shape=(1, 4, 2),
    )
    mesh_error("one mesh axis", rules=RULES | {"expert": ("replica", "data")})
    automatic = dataclasses.replace(TIGHT, partitioner="automatic")
    mesh_error(r"mesh\.replica=1 and mesh\.model=1", automatic, shape=(1, 4, 2))
    place = resolve_placement(make_mesh(1, 8, 1), RULES, TIGHT)
    with pytest.raises(ConfigError, match=r"12 sequences does not divide over 8 devices"):
        group_tokens(TIGHT, 12, L, place)
    with pytest.raises(ConfigError, match=r"group_sequences=3 does not divide the 8 sequences"):
        group_tokens(dataclasses.replace(TIGHT, group_sequences=3), 8, L, Placement())


def test_fewer_experts_than_devices_are_repeated_in_replicas():
    place = resolve_placement(make_mesh(4, 2, 1), RULES, dataclasses.replace(TIGHT, num_experts=2))
    assert (place.expert_axis, place.mlp_axis, place.replicas) == ("data", "", ("replica", "model"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"activation": "gelu"}, r"Did you mean 'geglu'"),
        ({"expert_bias": "both"}, "additive, multiplicative, none"),
        ({"causal": True, "routing": {"batch_prioritized": True}}, "causal"),
        ({"expert_dropout": 0.1, "routing": {"dispatch": "dropless"}}, "dispatch='index'"),
    ],
)
def test_options_that_cannot_work_are_named(options, match):
    routing = dataclasses.replace(TIGHT, **options.pop("routing", {}))
    with pytest.raises(ConfigError, match=match):
        SparseFFN(D, F, routing, **options)


def test_a_missing_key_is_named():
    spec, params, x, *_ = made(TIGHT)
    with pytest.raises(ValueError, match="needs `key`"):
        jax.eval_shape(lambda p: spec.bind(p, {})(x, train=True), params)


@pytest.mark.parametrize("train", [True, False])
def test_capacity_follows_training_and_evaluation(train):
    """The buffers have the rows of the factor in force: 1 in training, 3 in evaluation."""
    spec, params, x, mask, _ = made(TIGHT)

    def run(params, key):
        return spec.bind(params, {})(x, mask, key, train=train)

    jaxpr = str(jax.make_jaxpr(run)(params, jax.random.key(0)))
    assert capacity(TIGHT, L, train=train) == (1 if train else 3)
    assert f"f32[{E},{B},{capacity(TIGHT, L, train=train)},{D}]" in jaxpr
