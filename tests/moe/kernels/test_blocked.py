"""Experts on blocks of segments against a loop over experts: values, all gradients, and how many
rows are computed.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels.batched import BIASES
from moe.kernels.blocked import ALIGN, blocked, plan, room
from tests.moe.meshes import QUICK
from trainlib.sharding.constrain import lowered_for

D, F = 8, 12


def case(sizes, form, gated, dtype):
    """(starts, sizes, x, dy, weights, rows that are some expert's); what lies between segments is
    anything, in the cotangents too.
    """
    rng, experts = np.random.default_rng(0), len(sizes)
    starts = np.cumsum([0, *(-(-n // ALIGN) * ALIGN for n in sizes[:-1])]).astype(np.int32)
    total = room(sum(sizes), experts)
    x, dy = (jnp.asarray(v, dtype) for v in rng.normal(size=(2, total, D)))
    shapes = {"up": (experts, D, F), "down": (experts, F, D)}
    shapes |= {"gate": (experts, D, F)} if gated else {}
    shapes |= {"bias": (experts, F)} if form != "none" else {}
    weights = {n: jnp.asarray(rng.normal(size=s) * 0.3, dtype) for n, s in shapes.items()}
    used = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, sizes, strict=True)])
    return starts, np.asarray(sizes, np.int32), x, dy, weights, used


def by_loop(x, weights, starts, sizes, form):
    out = jnp.zeros(x.shape)
    for e, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        rows, w = slice(start, start + size), {n: v[e] for n, v in weights.items()}
        h = x[rows] @ w["up"]
        h = h * jax.nn.gelu(x[rows] @ w["gate"]) if "gate" in w else jnp.maximum(h, 0)
        h = {"none": h, "additive": h + w.get("bias", 0), "multiplicative": h * w.get("bias", 0)}
        out = out.at[rows].set(h[form] @ w["down"])
    return out


@pytest.mark.sample(1)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(
    ("sizes", "gated", "form", "dtype"),
    [
        ([70, 0, 33, 1, 300], True, "none", "float32"),
        ([70, 0, 33, 1, 300], False, "additive", "float32"),
        ([64, 32, 96, 128, 0], True, "multiplicative", "float32"),
        ([61, 30, 62], True, "none", "bfloat16"),
        ([0, 0, 501], False, "none", "float32"),
        ([0, 0], True, "additive", "float32"),
    ],
)
def test_blocks_equal_a_loop_over_experts(sizes, gated, form, dtype, platform):
    assert form in BIASES
    starts, counts, x, dy, weights, used = case(sizes, form, gated, dtype)
    wide = jax.tree.map(jnp.float32, (x, dy, weights))

    def step(run, x, dy, weights):
        y, pull = jax.vjp(run, x, weights)
        dx, dweights = pull(dy)
        return y[used], dx[used], dweights

    def run(x, weights):
        return blocked(x, starts, counts, weights, form)

    with lowered_for(platform) if platform != "cpu" else contextlib.nullcontext():
        got = jax.jit(lambda *a: step(run, *a), compiler_options=QUICK)(x, dy, weights)
    want = step(lambda x, w: by_loop(x, w, starts, counts, form), *wide)

    def close(path, a, b):
        assert a.dtype == dtype
        limit = {"float32": 2e-5, "bfloat16": 0.03}[dtype] * max(1.0, np.abs(b).max(initial=0))
        np.testing.assert_allclose(
            np.float32(a), b, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(close, got, want)


@pytest.mark.parametrize("rows", [700, 4096, 40_000])
@pytest.mark.parametrize("experts", [2, 8, 32, 128])
def test_a_plan_covers_every_segment_and_little_more(rows, experts):
    """On a CPU: blocks that fill a segment and reach at most 64 slots beyond it, and cost less than
    powers of two do, each block as much as 22 rows more.
    """
    slots = room(rows, experts)
    cut = plan(slots, experts)
    covered = cut.turns @ np.asarray(cut.sizes)
    needed = np.arange(len(cut.turns)) * 16
    assert covered[0] == 0
    assert np.all((covered >= needed) & (covered <= needed + 64))
    binary = [32 * bin(-(-n // 32)).count("1") for n in needed]  # blocks
    cost = covered + 22 * cut.turns.sum(axis=1)
    each = rows / experts
    near = (needed > 0.8 * each) & (needed < 1.2 * each) & (needed >= 32)
    powers = -(-needed // 32) * 32 + 22 * np.asarray(binary) / 32
    assert cost[near].sum() <= 1.02 * powers[near].sum()


def test_an_accelerator_takes_powers_of_two():
    """Segments of multiples of 32, without a row beyond them."""
    with lowered_for("tpu"):
        cut = plan(room(4096, 8), 8)
    assert cut.sizes == (1024, 512, 256, 128, 64, 32)
    np.testing.assert_array_equal(
        cut.turns @ np.asarray(cut.sizes), np.arange(1024 // ALIGN) * ALIGN
    )
    assert cut.turns.max() == 1
