"""The kernels of the experts' products, interpreted, against plain products; their tiles; and where
the layer takes them.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels import int8
from moe.kernels import tiled as module
from moe.kernels.batched import batched
from moe.kernels.tiled import fits, tiled
from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig
from trainlib import chips
from trainlib.model import weights as nn
from trainlib.sharding.constrain import activate, lowered_for
from trainlib.sharding.kernels import CORE_MEMORY, use_kernels
from trainlib.sharding.mesh import make_mesh

MIB = 2**20


def case(*, gated, tokens=32, width=512, hidden=256):
    """x, weights in float32 that bfloat16 holds, a dropout mask and a cotangent."""
    keys = iter(jax.random.split(jax.random.key(0), 6))
    into, out = (2, width, hidden), (2, hidden, width)
    shapes = {"up": into, "down": out} | ({"gate": into} if gated else {})
    weights = {
        name: (jax.random.normal(next(keys), shape) * shape[1] ** -0.5).astype(jnp.bfloat16)
        for name, shape in shapes.items()
    }
    weights = {name: value.astype(jnp.float32) for name, value in weights.items()}
    x, dy = (jax.random.normal(next(keys), (2, tokens, width), jnp.bfloat16) for _ in range(2))
    scale = jax.random.bernoulli(next(keys), 0.75, (2, tokens, hidden)) / 0.75
    return x, weights, scale.astype(jnp.bfloat16), dy


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("gated", "dropout", "memory"),
    [
        (True, False, 64 * MIB),  # every block is whole
        (True, True, MIB),  # sums over parts of the depth
        (False, True, MIB),
    ],
)
def test_values_and_gradients_are_those_of_plain_products(monkeypatch, gated, dropout, memory):
    """To the rounding of bfloat16; gradients of weights are float32 and not rounded."""
    monkeypatch.setattr(module, "_memory", lambda: memory)
    x, weights, scale, dy = case(gated=gated)
    scale = scale if dropout else None

    def run(x, weights):
        return tiled(x, weights, scale, True)

    def plain(x, weights):
        wide = None if scale is None else scale.astype(jnp.float32)
        return batched(x.astype(jnp.float32), weights, "none", wide)

    y, pull = jax.vjp(run, x, weights)
    dx, dweights = pull(dy)
    want, pull = jax.vjp(plain, x, weights)
    want_dx, want_dweights = pull(dy.astype(jnp.float32))
    assert (y.dtype, dx.dtype) == (jnp.bfloat16, jnp.bfloat16)
    got, expected = (y, dx, dweights), (want, want_dx, want_dweights)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=8e-3 * np.abs(b).max())
    for value in dweights.values():
        assert value.dtype == jnp.float32
        assert np.any(value != value.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize(("gated", "memory"), [(True, 64 * MIB), (True, MIB), (False, MIB)])
def test_whole_numbers_are_read_as_they_lie(monkeypatch, gated, memory):
    """int8 matrices: values, and the gradient of the tokens, are those of the floats that they
    stand for; blocks hold a byte of each and its bfloat16.
    """
    monkeypatch.setattr(module, "_memory", lambda: memory)
    x, weights, scale, dy = case(gated=gated)
    whole = {}
    for name, value in weights.items():
        whole[name], whole[int8.scale_of(name)] = int8.rounded(value)
    y, pull = jax.vjp(lambda x: tiled(x, whole, scale, True), x)
    (dx,) = pull(dy)
    floats = int8.in_type(whole, jnp.float32)
    wide = scale.astype(jnp.float32)
    want, pull = jax.vjp(lambda x: batched(x, floats, "none", wide), x.astype(jnp.float32))
    (want_dx,) = pull(dy.astype(jnp.float32))
    for a, b in ((y, want), (dx, want_dx)):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(a), b, rtol=0, atol=8e-3 * np.abs(b).max())


def kernels_of(tokens, width, hidden):
    """(form, sizes) of the six kernels of one expert of a gated layer, as `tiled` makes them."""
    size = module._Sizes
    return {
        "into": ("nn", size(tokens, hidden, width, 2, 8, 6, 2)),
        "down": ("nn", size(tokens, width, hidden, 2, 4, 2, 1)),
        "pull back": ("nt", size(tokens, hidden, width, 2, 4, 10, 1)),
        "back": ("nt", size(tokens, width, hidden, 4, 8, 2, 1)),
        "gradient into": ("tn", size(width, hidden, tokens, 2, 4, 8, 2)),
        "gradient down": ("tn", size(hidden, width, tokens, 2, 2, 4, 1)),
    }


@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
@pytest.mark.parametrize(
    "sizes",
    [
        (2560, 1024, 2816),  # ST-MoE-L, E = 8
        (320, 1024, 2816),  # E = 64
        (20480, 5120, 2560),  # ST-MoE-32B, its encoder on a mesh with 8 columns
        (4096, 5120, 2560),  # its decoder
        (640, 768, 2048),  # ST-MoE-B
    ],
)
def test_tiles_fit_and_bytes_do_not_limit_what_arithmetic_could(sizes, chip):
    """Over the six kernels: within 5 % of the larger of arithmetic and least bytes; 15 % on v4,
    which has an eighth of the memory.
    """
    memory = int(module._SHARE * CORE_MEMORY[chip] * MIB)
    spec, taken, least = chips.CHIPS[chip], 0.0, 0.0
    for form, size in kernels_of(*sizes).values():
        tiles = module._tiles(size, form, memory)
        assert tiles is not None
        assert size.memory(tiles) <= memory
        sizes_of = (size.rows, size.columns, size.depth)
        assert all(whole % part == 0 for whole, part in zip(sizes_of, tiles, strict=True))
        products = 2 if (form, size.left) == ("nt", 4) else size.sums
        arithmetic = products * 2 * size.rows * size.columns * size.depth / spec.flops
        written = size.rows * size.columns * size.results
        whole = size.traffic(module.Tiles(*sizes_of))
        taken += max(arithmetic, (size.traffic(tiles) + written) / spec.hbm_bandwidth)
        least += max(arithmetic, (whole + written) / spec.hbm_bandwidth)
    assert taken <= least * (1.15 if chip == "v4" else 1.05), taken / least


def test_what_does_not_fit_is_told():
    def shaped(tokens=32, width=256, hidden=128, dtype=jnp.bfloat16, **more):
        x = SimpleNamespace(shape=(2, tokens, width), dtype=dtype)
        return fits(x, {"up": SimpleNamespace(shape=(2, width, hidden)), **more})

    assert shaped()
    assert not shaped(tokens=40)
    assert not shaped(tokens=0)
    assert not shaped(width=192)
    assert not shaped(hidden=64)
    assert not shaped(dtype=jnp.float32)
    assert not shaped(bias=None)


RULES = {
    **{"batch": ("replica", "data", "model"), "expert": "data", "expert_embed": None},
    **{"expert_mlp": "model", "router": None},
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kernels", "routing", "options"),
    [
        (6, {}, {}),
        (0, {"partitioner": "automatic"}, {}),  # which cannot split a kernel
        (0, {}, {"expert_bias": "multiplicative"}),
        (0, {"capacity_factor": 1.25}, {}),  # 4 groups of 10 slots of an expert
    ],
)
def test_a_layer_takes_the_kernels_where_they_fit_on_a_tpu(kernels, routing, options):
    config = RoutingConfig(
        4, second_policy="all", group_sequences=1, **{"capacity_factor": 2.0} | routing
    )
    spec = nn.abstract(SparseFFN(128, 128, config, **options))
    x = jax.ShapeDtypeStruct((4, 32, 128), jnp.bfloat16)
    mesh = make_mesh(data=2, devices=jax.devices()[:2])

    def loss(params, x):
        with activate(mesh, RULES):
            return spec.bind(params, {})(x, train=True)[0].astype(jnp.float32).sum()

    with lowered_for("tpu"):
        program = str(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(spec.params, x))
        with use_kernels("plain"):
            plain = str(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(spec.params, x))
    assert program.count("pallas_call[") == kernels
    assert "pallas_call" not in plain
    with_cpu = str(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(spec.params, x))
    assert "pallas_call" not in with_cpu
