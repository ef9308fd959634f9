"""The strict resolver: what it accepts; a mistake names the weight, the axis and a way out."""

import pytest
from jax.sharding import PartitionSpec as P

from trainlib.errors import ConfigError
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_parts, resolve

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
    spec = resolve("w", (8, 6), ("conv_in", "conv_out"), RULES, mesh).spec
    assert spec == P("data", None)
    assert resolve("x", (8, 3), ("batch", None), RULES, mesh).spec == P(("replica", "data"), None)
    assert batch_parts(RULES, mesh) == 4


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
        resolve("w", shape, axes, rules, mesh)
    for word in words:
        assert word in str(caught.value)
