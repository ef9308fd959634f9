"""Dispatch and combine against one-hot einsums, kernels against a loop over experts: values and
all gradients.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import plan as plan_lib
from moe.config import default_config
from moe.kernels.batched import batched
from moe.kernels.grouped import TILE, check_platform, grouped
from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig
from moe.routing.dispatch import combine, copy_to_slots, dispatch
from moe.routing.route import route
from moe.routing.slots import segments
from tests.moe.routing import one_hot
from trainlib.errors import ConfigError
from trainlib.model import weights as nn
from trainlib.sharding.constrain import lowered_for
from trainlib.sharding.mesh import make_mesh

QUICK = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def weights_of(experts, width, hidden, *, gated=True, form="none", dtype=jnp.float32):
    keys = iter(jax.random.split(jax.random.key(experts), 4))
    names = {"up": (experts, width, hidden), "down": (experts, hidden, width)}
    names |= {"gate": (experts, width, hidden)} if gated else {}
    names |= {"bias": (experts, hidden)} if form != "none" else {}
    return {
        name: (jax.random.normal(next(keys), shape) * shape[-2] ** -0.5).astype(dtype)
        for name, shape in names.items()
    }


def one_expert(x, weights, e, form):
    """The formula of one expert, [N, D] -> [N, D]."""
    h = x @ weights["up"][e]
    if "gate" in weights:
        h = h * jax.nn.gelu((x @ weights["gate"][e]).astype(jnp.float32)).astype(h.dtype)
    else:
        h = jnp.maximum(h, 0)
    bias = weights["bias"][e] if form != "none" else None
    h = {"none": lambda: h, "additive": lambda: h + bias, "multiplicative": lambda: h * bias}[
        form
    ]()
    return h @ weights["down"][e]


def close(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("groups", "size", "experts", "factor", "options"),
    [
        (1, 32, 4, 1.25, {}),
        (3, 19, 5, 0.6, {}),  # most second choices are dropped
        (2, 16, 2, 8.0, {"top_k": 1}),
        (2, 24, 4, 1.0, {"router": "experts_choose"}),
    ],
)
def test_dispatch_and_combine_equal_one_hot_einsums(groups, size, experts, factor, options):
    options = {"second_policy": "all", "min_capacity": 1, "capacity_factor": factor} | options
    config = RoutingConfig(experts, **options)
    rng = np.random.default_rng(size)
    x, dy = rng.normal(size=(2, groups, size, 6)).astype(np.float32)
    router = rng.normal(size=(6, experts)).astype(np.float32)
    scale = rng.normal(size=(experts, 6)).astype(np.float32)
    mask = rng.random((groups, size)) < 0.9

    def by_index(x, router, scale):
        routed = route(x @ router, config, train=True, mask=mask)
        rows = dispatch(x, routed.slot, routed.source) * scale[:, None, None]
        return jnp.vdot(combine(rows, routed.gates, routed.slot, routed.source), dy)

    def by_einsum(x, router, scale):
        routed = route(x @ router, config, train=True, mask=mask)
        rows = routed.source.shape[-1]
        total = 0.0
        for g in range(groups):
            y = one_hot.one_hot_layer(
                x[g],
                routed.slot[g],
                routed.gates[g],
                lambda buffer: buffer * scale[:, None],
                experts,
                rows,
            )
            total += jnp.vdot(y, dy[g])
        return total

    got, want = (
        QUICK(jax.value_and_grad(f, (0, 1, 2)))(x, router, scale) for f in (by_index, by_einsum)
    )
    close(got, want, 2e-5)


@pytest.mark.slow
def test_an_empty_slot_copies_a_token_that_has_one():
    """So that what padding holds, even if it is no number, reaches no gradient of weights."""
    config = RoutingConfig(4, second_policy="all", min_capacity=1, capacity_factor=4.0)
    rng = np.random.default_rng(0)
    mask = np.arange(16) % 3 == 1  # [S]; neither the first nor the last token of the group
    x = rng.normal(size=(2, 16, 6)).astype(np.float32)
    x = np.where(mask[:, None], x, np.nan)
    routed = route(rng.normal(size=(2, 16, 4)), config, train=True, mask=np.stack([mask] * 2))
    filled = np.asarray(routed.source) < 32
    assert not filled.all()
    slots = np.asarray(copy_to_slots(x, routed.slot, routed.source))  # [E, G, C, D]
    assert np.isfinite(slots).all()
    zeros = np.asarray(dispatch(x, routed.slot, routed.source))
    np.testing.assert_array_equal(zeros, np.where(filled[..., None], slots, 0))

    def loss(scale):
        rows = copy_to_slots(x, routed.slot, routed.source) * scale[:, None, None]
        return jnp.sum(combine(rows, routed.gates, routed.slot, routed.source))

    assert np.isfinite(jax.grad(loss)(jnp.ones((4, 6)))).all()


@pytest.mark.slow
@pytest.mark.parametrize("router", ["tokens_choose", "experts_choose"])
def test_a_tpu_counts_and_adds_up_in_another_way_to_the_same_end(router):
    """Slots without a scatter, gradients of gates slot by slot; run here on what is at hand."""
    config = RoutingConfig(
        5, second_policy="all", min_capacity=1, capacity_factor=0.7, router=router
    )
    rng = np.random.default_rng(1)
    logits, x, dy = (
        rng.normal(size=(2, 19, n)).astype(np.float32) for n in (config.num_experts, 6, 6)
    )
    mask = rng.random((2, 19)) < 0.9

    def step(logits, x):
        routed = route(logits, config, train=True, mask=mask)
        rows = jnp.sin(copy_to_slots(x, routed.slot, routed.source))
        y = combine(rows, routed.gates, routed.slot, routed.source)
        return jnp.vdot(y, dy), (routed.slot, routed.source)

    def run(logits, x):  # a new function for each platform: traces are kept
        return jax.jit(jax.value_and_grad(step, (0, 1), has_aux=True))(logits, x)

    want = run(logits, x)
    jax.clear_caches()
    with lowered_for("tpu"):
        got = run(logits, x)
    for a, b in zip(got[0][1], want[0][1], strict=True):
        np.testing.assert_array_equal(a, b)
    close((got[0][0], got[1]), (want[0][0], want[1]), 1e-5)


def test_segments_are_the_same_on_a_tpu():
    expert = jnp.asarray(np.random.default_rng(2).integers(0, 6, (37, 2)), jnp.int32)
    want = segments(expert, 5, 8, total=128)
    with lowered_for("tpu"):
        got = segments(expert, 5, 8, total=128)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_bfloat16_rows_are_added_in_float32():
    """Two choices of weight 1 + 2**-8 of a row of ones: 2 + 2**-7, which bfloat16 sums cannot hold
    on the way.
    """
    slot, source = jnp.array([[[0, 1]]]), jnp.array([[[0]], [[1]]])
    gates = jnp.full((1, 1, 2), 1 + 2.0**-8)
    y = combine(jnp.ones((2, 1, 1, 3), jnp.bfloat16), gates, slot, source)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), float(jnp.bfloat16(2 + 2.0**-7)))
    dx = jax.vjp(lambda x: dispatch(x, slot, source), jnp.ones((1, 1, 3), jnp.bfloat16))[1](
        jnp.full((2, 1, 1, 3), 1 + 2.0**-7, jnp.bfloat16)
    )[0]
    np.testing.assert_array_equal(np.asarray(dx, np.float32), 2 + 2.0**-6)


@pytest.mark.parametrize(("tokens", "choices", "experts", "align"), [(37, 2, 5, 32), (16, 1, 3, 1)])
def test_segments_hold_every_choice_once_in_order(tokens, choices, experts, align):
    rng = np.random.default_rng(tokens)
    expert = rng.integers(0, experts + 1, (tokens, choices))  # `experts` goes nowhere
    expert[:, 0] = np.where(expert[:, 0] == 1, 0, expert[:, 0])
    total = tokens * choices + experts * (align - 1)
    layout = jax.tree.map(np.asarray, segments(jnp.asarray(expert), experts, align, total))
    source, starts, sizes = layout.source[0, 0], layout.starts, layout.sizes
    assert len(source) == total
    assert np.all(starts % align == 0)
    flat = expert.T.reshape(-1)
    for e in range(experts):
        own = source[starts[e] : starts[e] + sizes[e]]
        assert own.tolist() == np.flatnonzero(flat == e).tolist()  # choice-major, left to right
    filled = np.flatnonzero(source < tokens * choices)
    assert len(filled) == sizes.sum() == (flat < experts).sum()
    for row in filled:
        k, t = divmod(source[row], tokens)
        assert layout.slot[0, t, k] == row
    assert np.all(layout.slot[0][expert == experts] == len(source))


def by_loop(x, weights, starts, sizes, form):
    out = jnp.zeros_like(x)
    for e, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        rows = slice(int(start), int(start + size))
        out = out.at[rows].set(one_expert(x[rows], weights, e, form))
    return out


@pytest.mark.thorough
def test_grouped_equals_a_loop_over_experts():
    """The TPU kernel, interpreted."""
    sizes = [70, 0, 33, 1, 100]
    starts = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
    counts, used = np.asarray(sizes, np.int32), np.arange(2 * TILE) < sum(sizes)
    x, dy = np.float32(np.random.default_rng(0).normal(size=(2, 2 * TILE, 8)) * used[:, None])
    weights = weights_of(len(sizes), 8, 12, form="multiplicative")

    def loss(run, x, weights):
        return jnp.vdot(run(x, weights), dy)

    form = "multiplicative"
    run = functools.partial(loss, lambda x, w: grouped(x, counts, w, form, interpret=True))
    want = functools.partial(loss, lambda x, w: by_loop(x, w, starts, counts, form))
    close(*(QUICK(jax.value_and_grad(f, (0, 1)))(x, weights) for f in (run, want)), 2e-5)


def test_batched_equals_each_expert():
    weights = weights_of(3, 8, 12, form="additive", dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (3, 5, 8), jnp.bfloat16)
    got, want = QUICK(
        lambda x, w: (
            batched(x, w, "additive", None),
            jnp.stack([one_expert(x[e], w, e, "additive") for e in range(3)]),
        )
    )(x, weights)
    assert got.dtype == jnp.bfloat16
    close(got, want, 2e-2)


def grouped_step():
    """A function to trace, and its arguments: loss and gradients of a layer of 4 experts."""
    routing = RoutingConfig(4, second_policy="all", dispatch="grouped")
    spec = nn.abstract(SparseFFN(128, 128, routing))
    x = jax.ShapeDtypeStruct((1, 256, 128), jnp.bfloat16)

    def loss(params, x):
        return spec.bind(params, {})(x, train=True)[0].astype(jnp.float32).sum()

    return jax.jit(jax.grad(loss)), (spec.params, x)


def test_grouped_kernels_are_those_of_the_platform_that_is_compiled_for():
    """Here for a TPU elsewhere: the compiled kernels (products, those by transposed weights, and
    gradients of weights), not their interpreter, nor every row times every expert.
    """
    step, arguments = grouped_step()
    with lowered_for("tpu"):
        program = step.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert program.count("@tpu_custom_call") >= 3
    assert "ragged_dot" not in program


def test_grouped_kernels_are_refused_where_they_would_be_slow():
    check_platform("tpu")
    step, arguments = grouped_step()
    with pytest.raises(ConfigError, match=r"TPU and GPU, and this is for cpu.*'index'"):
        step.trace(*arguments)
    config = default_config("st_moe_tiny")
    config.routing.dispatch = "grouped"
    with pytest.raises(ConfigError, match="and this is for cpu"):
        plan_lib.make(config, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    if not importlib.util.find_spec("tokamax"):
        with lowered_for("cuda"), pytest.raises(ConfigError, match="tokamax, which is"):
            step.trace(*arguments)
