"""The strict resolver: what it accepts; a mistake names the weight, the axis and a way out."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from trainlib.errors import ConfigError
from trainlib.sharding import rules as sharding
from trainlib.sharding.mesh import make_mesh

RULES = {"batch": ("replica", "data"), "conv_in": "data", "conv_out": None, "heads": "model"}


@pytest.fixture
def mesh():
    return make_mesh(2, 2, 2)


def test_mesh_axes_and_the_size_that_is_left():
    assert dict(make_mesh(data=-1).shape) == {"replica": 1, "data": 8, "model": 1}
    assert dict(make_mesh(2, -1, 2).shape) == {"replica": 2, "data": 2, "model": 2}


@pytest.mark.parametrize("sizes", [(3, -1, 1), (-1, -1, 1), (1, 4, 1), (0, 8, 1), (1, 8, -2)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(ConfigError, match="mesh"):
        make_mesh(*sizes)
    with pytest.raises(ConfigError, match=r"8 do not divide over mesh.model=6. .* is 2\."):
        make_mesh(model=6)


def test_logical_axes_become_mesh_axes(mesh):
    spec = sharding.resolve("w", (8, 6), ("conv_in", "conv_out"), RULES, mesh).spec
    assert spec == P("data", None)
    assert sharding.resolve("x", (8, 3), ("batch", None), RULES, mesh).spec == P(
        ("replica", "data"), None
    )
    assert sharding.batch_parts(RULES, mesh) == 4


@pytest.mark.parametrize(
    ("shape", "axes", "rules", "words"),
    [
        ((8,), ("conv_inn",), RULES, ["'w'", "conv_inn", "Did you mean 'conv_in'"]),
        ((8,), ("conv_in",), {"conv_in": "dada"}, ["'dada'", "Did you mean 'data'"]),
        ((8, 8), ("batch", "conv_in"), RULES, ["'w'", "'batch'", "'conv_in'", "'data'"]),
        ((7,), ("conv_in",), RULES, ["'w'", "7", "'conv_in'", "fits is 1"]),
        ((6,), ("batch",), RULES, ["6", "4 devices", "fits is 2"]),
    ],
)
def test_mistakes_are_named(mesh, shape, axes, rules, words):
    with pytest.raises(ConfigError) as caught:
        sharding.resolve("w", shape, axes, rules, mesh)
    for word in words:
        assert word in str(caught.value)


def test_constrain_acts_only_under_a_mesh(mesh):
    x = jnp.ones((8, 4))
    assert sharding.constrain(x, "no_such_axis", None) is x

    def constrained(x):
        with sharding.activate(mesh, RULES):
            return sharding.constrain(x, "batch", None)

    assert jax.jit(constrained)(x).sharding.spec[0] == ("replica", "data")


def test_platform_is_that_of_the_mesh_and_of_what_is_asked_for(mesh):
    assert sharding.platform() == jax.default_backend() == "cpu"
    elsewhere = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="tpu")]))
    with sharding.activate(elsewhere, RULES):
        assert sharding.platform() == "tpu"
        with sharding.lowered_for("cuda"):
            assert sharding.platform() == "gpu"
        with sharding.activate(mesh, RULES):
            assert sharding.platform() == "cpu"
        assert sharding.platform() == "tpu"
    assert sharding.platform() == "cpu"


def test_batch_local_equals_the_plain_function_with_gradients(mesh):
    """A loop under shard_map: same values, and gradients of shared arrays are summed."""
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(8, 3))), jnp.asarray(rng.normal(size=(3, 2)))

    def loss(x, w, active):
        def local(x, w):
            return jax.lax.map(lambda row: jnp.tanh(row @ w), x)

        if not active:
            return jnp.sum(local(x, w) ** 2)
        with sharding.activate(mesh, RULES):
            return jnp.sum(sharding.batch_local(local)(x, replicated=(w,)) ** 2)

    expected = jax.value_and_grad(loss, (0, 1))(x, w, False)
    found = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)(x, w, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), expected, found)


def test_batch_local_gathers_nothing(mesh):
    """What the wrapper is for: each device loops over its own rows, without communication."""

    def run(x):
        with sharding.activate(mesh, RULES):
            return sharding.batch_local(lambda x: jax.lax.map(jnp.sin, x))(x)

    rows = sharding.batch_sharding(RULES, mesh)
    text = jax.jit(run, in_shardings=rows, out_shardings=rows).lower(jnp.ones((8, 4))).compile()
    assert "all-gather" not in text.as_text()
