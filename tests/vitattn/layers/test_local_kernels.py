"""Layers of local and halo attention by the kernels for a TPU, interpreted, against the plain form;
on one device and on meshes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from trainlib.model.weights import abstract, initialise
from trainlib.sharding.constrain import activate, lowered_for
from trainlib.sharding.kernels import use_kernels
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding
from vitattn.layers.local import HaloAttention, LocalAttention

RULES = {"batch": ("replica", "data")}


def layer(kind, x, features=16, **options):
    """fn(parameters, x) and its parameters."""
    spec = abstract(kind(x.shape[-1], features, **options))
    params = initialise(spec.params, jax.random.key(0))
    return lambda params, x: spec.bind(params, {})(x), params


def run(fn, params, x):
    def both(params, x):
        out, pull = jax.vjp(fn, params, x)
        wave = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return out, pull(wave.astype(out.dtype))

    return jax.jit(both)(params, x)


def image(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), shape, dtype)


def close(actual, expected, bound=1e-5):
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


LAYERS = {
    "plain": (LocalAttention, {"window": 3}),
    "stride and border": (LocalAttention, {"window": 5, "stride": 2, "mask_border": True}),
    "sine": (LocalAttention, {"window": 3, "num_heads": 4, "position": "sine"}),
    "position only": (LocalAttention, {"window": 7, "position_only": True}),
    "halo": (HaloAttention, {"block": 3, "halo": 1, "stride": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), LAYERS.values(), ids=LAYERS)
def test_layers_equal_the_plain_form(kind, options):
    x = image(2, 5, 6, 8)
    fn, params = layer(kind, x, **options)
    with use_kernels("interpret"):
        actual = run(fn, params, x)
    close(actual, run(fn, params, x), 2e-5)


@pytest.mark.thorough
def test_bfloat16():
    x = image(2, 4, 6, 8)
    fn, params = layer(LocalAttention, x, window=3, dtype=jnp.bfloat16)
    with use_kernels("interpret"):
        actual = run(fn, params, x)
    close(actual, run(fn, params, x), 2**-5)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["batch", "fsdp"])
def test_eight_devices_equal_one(sharded):
    x = image(8, 4, 5, 8)
    fn, params = layer(LocalAttention, x, window=3)
    with use_kernels("interpret"):
        expected = run(fn, params, x)
    mesh = make_mesh(replica=2, data=4, devices=jax.devices()[:8])
    x = jax.device_put(x, batch_sharding(RULES, mesh))

    def place(weight):
        """Over the axis of data, as FSDP stores weights, where it divides them."""
        split = sharded and weight.shape[0] % 4 == 0
        spec = PartitionSpec("data") if split else PartitionSpec()
        return jax.device_put(weight, NamedSharding(mesh, spec))

    params = jax.tree.map(place, params)
    with activate(mesh, RULES), use_kernels("interpret"):
        actual = run(fn, params, x)
    close(actual, expected)


def program(kernels):
    x = jax.ShapeDtypeStruct((8, 14, 14, 64), jnp.bfloat16)
    spec = abstract(LocalAttention(64, 64, dtype=jnp.bfloat16))
    weights = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in spec.params.items()}
    with lowered_for("tpu"), use_kernels(kernels):
        return str(jax.make_jaxpr(lambda w, x: spec.bind(w, {})(x))(weights, x))


def test_a_program_for_a_tpu_holds_kernels_unless_they_are_turned_off():
    text = program("auto")
    for name in ("project_into", "window_forward", "project_out_of"):
        assert text.count(f"name={name}") >= 1, name
    assert "pallas_call" not in program("plain")
