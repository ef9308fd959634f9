"""A layer with capacity that computes no empty slots, as on a CPU, against the one that computes
all of them: outputs, losses, metrics and all gradients; and what the compiler makes of it.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe.exchange.filled
from moe.exchange.filled import skips_empty_slots
from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig
from moe.routing.losses import auxiliary_loss
from moe.routing.placement import Placement
from moe.routing.route import route
from tests.moe.meshes import close, run
from trainlib.model import weights as nn
from trainlib.sharding.constrain import lowered_for
from trainlib.sharding.mesh import make_mesh

B, L, D, F, E = 8, 23, 6, 10, 5  # odd sizes
TIGHT = RoutingConfig(E, group_sequences=1, balance_loss_weight=1.0)  # drops 4 of 10 choices
ROOMY = RoutingConfig(E, group_sequences=2, second_policy="all", capacity_factor=3.0)
SWITCH = RoutingConfig(E, top_k=1, group_sequences=1)


def result(config, *, filled, dtype="float32", bias="none", shape=None, monkeypatch):
    """((loss, (output, metrics)), gradients of weights and x), with masked tokens."""
    monkeypatch.setattr(moe.exchange.filled, "_LEAST_ROWS", 1 if filled else 10**9)
    monkeypatch.setattr(moe.exchange.filled, "_LEAST_WORK", 1)
    spec = nn.abstract(SparseFFN(D, F, config, init_scale=2.0, expert_bias=bias))
    rng = np.random.default_rng(0)
    params = {
        n: np.float32(rng.normal(size=s.shape) * s.shape[-2] ** -0.5)
        for n, s in sorted(spec.params.items())
    }
    x, dy = jnp.asarray(rng.normal(size=(2, B, L, D)), jnp.float32)
    mask = jnp.asarray(np.arange(L) < rng.integers(1, L + 1, (B, 1)))

    def loss(params, x):
        y, out = spec.bind(params, {})(x.astype(dtype), mask, jax.random.key(5), train=True)
        total = jnp.vdot(y.astype(jnp.float32), dy) + auxiliary_loss(out.losses, config)
        return total, (y.astype(jnp.float32), out.metrics)

    step = jax.value_and_grad(loss, (0, 1), has_aux=True)
    return run(step, spec, params, x, shape=shape)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("config", "options", "tolerance"),
    [
        (TIGHT, {}, 2e-5),
        (TIGHT, {"bias": "additive"}, 2e-5),
        (ROOMY, {"bias": "multiplicative"}, 2e-5),
        (SWITCH, {}, 2e-5),
        (TIGHT, {"dtype": "bfloat16"}, 0.03),
        (TIGHT, {"shape": (8, 1, 1)}, 2e-5),  # each device the tokens of its own
        (ROOMY, {"shape": (1, 1, 1)}, 2e-5),
    ],
    ids=["drops", "additive", "roomy", "switch", "bfloat16", "replicas", "mesh of one"],
)
def test_it_is_the_layer_that_computes_every_slot(config, options, tolerance, monkeypatch):
    run = functools.partial(result, config, monkeypatch=monkeypatch, **options)
    calls = []
    original = moe.layers.sparse.placed
    monkeypatch.setattr("moe.layers.sparse.placed", lambda r: calls.append(1) or original(r))
    want = run(filled=False)
    assert not calls
    got = run(filled=True)
    assert calls
    close(got, want, tolerance)
    dropped, _ = got[0][1][1]["dropped_choices"]
    assert (dropped > 0) == (config is not ROOMY)


@pytest.mark.thorough
def test_only_one_cpu_skips_what_is_empty(monkeypatch):
    monkeypatch.setattr(moe.exchange.filled, "_LEAST_WORK", 1)
    config = RoutingConfig(2, second_policy="all", capacity_factor=2.5)
    routed = route(jnp.zeros((1, 64, 2)), config, train=True)
    weights, alone = (2, D, F), Placement()
    assert skips_empty_slots(routed, weights, None, alone)
    assert not skips_empty_slots(routed, weights, jnp.ones(()), alone)  # dropout by slot
    rows = Placement(make_mesh(data=2, devices=jax.devices()[:2]), ("data",), "data")
    assert not skips_empty_slots(routed, weights, None, rows)
    with lowered_for("tpu"):
        assert not skips_empty_slots(routed, weights, None, alone)
    monkeypatch.setattr(moe.exchange.filled, "_LEAST_WORK", 64 * 2 * D * F + 1)
    assert not skips_empty_slots(routed, weights, None, alone)
    few = route(jnp.zeros((1, 63, 2)), config, train=True)
    monkeypatch.setattr(moe.exchange.filled, "_LEAST_WORK", 1)
    assert not skips_empty_slots(few, weights, None, alone)


@pytest.mark.thorough
def test_memory_and_copies_are_those_of_the_rows():
    """T=2048, D=512, F=1024, E=8: temporary bytes are below those of the layer that computes every
    slot, and gradients of weights are written in place: nothing of their size is copied but the
    zeros that they start from.
    """
    config = RoutingConfig(8, capacity_per_choice=True, second_policy="all")
    spec = nn.abstract(SparseFFN(512, 1024, config))
    params = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in spec.params.items()}
    x = jax.ShapeDtypeStruct((1, 2048, 512), jnp.float32)

    def loss(params, x):
        y, out = spec.bind(params, {})(x, train=True)
        return jnp.vdot(y, y) + auxiliary_loss(out.losses, config)

    def compiled():
        lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x)
        return lowered.compile({"xla_backend_optimization_level": 0})

    program = compiled()
    jax.clear_caches()
    with lowered_for("gpu"):
        every_slot = compiled()
    used, all_used = (p.memory_analysis().temp_size_in_bytes for p in (program, every_slot))
    assert used < all_used
    copied = [
        line
        for line in program.as_text().splitlines()
        if re.search(r"f32\[8,(512,1024|1024,512)\]\S* copy\((?!%broadcast)", line)
    ]
    assert not copied
    assert "f32[4416,512]" in program.as_text()  # 2 T rows, 31 of alignment an expert, 64 beyond
    assert "f32[5120,512]" not in program.as_text()  # slots
