"""The kernel of chosen experts, interpreted, against all experts on all tokens; and on a TPU by the
account of its compiler.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels import chosen as module
from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig
from tests.moe.meshes import QUICK
from tests.tpu_compiler import needs_figures, needs_libtpu
from trainlib.model import weights as nn
from trainlib.planning.ledger import ledger_of
from trainlib.sharding.kernels import use_kernels

D, F, E, P = 128, 256, 4, 2
ROUTING = RoutingConfig(E, capacity_factor_eval=float(E), min_capacity=1, group_sequences=1)


def outputs(routing, x, choice, dtype="float32", **options):
    """The layer [B, 1, D] from stacks of two periods, by the kernel or by plain operations."""
    layer = nn.abstract(SparseFFN(D, F, routing, init_scale=2.0, **options))
    random = np.random.default_rng(0)
    params = {}
    for name, spec in sorted(layer.params.items()):
        shape = spec.shape if name == "router" else (P, *spec.shape)
        params[name] = np.float32(random.normal(size=shape) * spec.shape[-2] ** -0.5)
        if name != "router":
            params[name] = jnp.asarray(params[name], dtype)

    def run(params, x):
        with use_kernels(choice):
            return layer.bind(params, {})(x, period=1)[0]

    return np.float32(jax.jit(run, compiler_options=QUICK)(params, x))


def tokens(batch, dtype="float32"):
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, 1, D)), dtype)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("batch", "top_k", "dtype", "options"),
    [
        (1, 1, "float32", {}),
        (4, 2, "bfloat16", {}),
        (4, 2, "float32", {"activation": "relu", "expert_bias": "additive"}),
        (2, 3, "float32", {"expert_bias": "multiplicative"}),
    ],
)
def test_the_kernel_is_all_experts(monkeypatch, batch, top_k, dtype, options):
    """In two parts of the hidden width. In bfloat16 it rounds less than the plain form."""
    monkeypatch.setattr(module, "_MOST_BLOCK", 3 * D * 128 * 4)  # bytes of 128 hidden units
    routing, x = dataclasses.replace(ROUTING, top_k=top_k), tokens(batch, dtype)
    got, want = (outputs(routing, x, choice, **options) for choice in ("interpret", "plain"))
    limit = 2e-5 if dtype == "float32" else 0.03
    np.testing.assert_allclose(got, want, rtol=0, atol=limit * np.abs(want).max())


def test_few_tokens_and_whole_tiles_fit():
    weights = {"up": jnp.zeros((P, E, D, F)), "down": jnp.zeros((P, E, F, D))}
    assert module.fits(jnp.zeros((8, D)), weights)
    assert not module.fits(jnp.zeros((257, D)), weights)
    assert not module.fits(jnp.zeros((8, 64)), {n: w[:, :, :64] for n, w in weights.items()})


def test_a_token_that_is_not_finite_touches_only_itself():
    x = tokens(3).at[1].set(jnp.nan)
    got = outputs(ROUTING, x, "interpret")
    assert not got[1].any()
    kept = [0, 2]
    np.testing.assert_allclose(got[kept], outputs(ROUTING, tokens(3), "plain")[kept], atol=2e-5)


def on_a_chip(experts, dtype, batch=8):
    """Ledger of a layer of 1024 x 2816 with float32 weights of two periods, on a v5e."""
    routing = dataclasses.replace(ROUTING, num_experts=experts, capacity_factor_eval=float(experts))
    layer = nn.abstract(SparseFFN(1024, 2816, routing))
    params = {
        n: jax.ShapeDtypeStruct(s.shape if n == "router" else (P, *s.shape), jnp.float32)
        for n, s in layer.params.items()
    }
    x = jax.ShapeDtypeStruct((batch, 1, 1024), dtype)

    def run(params, x):
        return layer.bind(params, {})(x, period=1)[0]

    return ledger_of(run, params, x, target="v5e-1")


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_tpu_rounds_no_experts_but_the_chosen(dtype):
    """Nothing of the size of an expert lies in its memory beside the weights."""
    assert on_a_chip(64, dtype).temporaries < 2**20


@pytest.mark.thorough
@needs_figures
def test_a_tpu_takes_the_time_in_which_the_chosen_experts_arrive():
    """Two of 16 or of 64 experts at 819 GB/s: 84.5 of 111 us."""
    few, many = (on_a_chip(experts, jnp.bfloat16, batch=1) for experts in (16, 64))
    expert = 3 * 1024 * 2816 * 4
    assert few.seconds < 1.4 * 2 * expert / 819e9
    assert many.seconds < 1.1 * few.seconds
