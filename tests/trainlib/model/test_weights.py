"""Abstract weights: nothing is allocated at declaration; values depend on key and name alone."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from trainlib.model import weights as nn
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import resolve_specs

NORMAL = jax.nn.initializers.normal(1.0)
ZEROS = jax.nn.initializers.zeros


class Layer(nnx.Module):
    def __init__(self, width):
        self.kernel = nn.declare((width, 4), ("conv_in", "conv_out"), NORMAL)
        self.mean = nn.declare_stat((4,), ("channels",), ZEROS)

    def __call__(self, x):
        y = x @ self.kernel[...]
        self.mean[...] = self.mean[...] + y.mean(0)
        return y


class Model(nnx.Module):
    def __init__(self, widths):
        self.layers = nnx.List([Layer(width) for width in widths])

    def __call__(self, x):
        return sum(layer(x) for layer in self.layers)


def test_building_allocates_nothing_and_counts_are_exact():
    huge = nn.abstract(Model([10**12]))
    assert huge.param_count == 4 * 10**12
    assert list(huge.params) == ["layers.0.kernel"]
    assert list(huge.model_state) == ["layers.0.mean"]


def test_names_go_there_and_back():
    flat = {"layers.0.kernel": 1, "layers.10.a.b": 2, "stem.kernel": 3}
    assert nn.flatten(nn.unflatten(flat)) == flat
    assert nn.unflatten(flat)["layers"][10]["a"]["b"] == 2


def test_values_depend_on_names_not_on_neighbours_or_mesh():
    key = jax.random.key(3)
    one = nn.initialise(nn.abstract(Model([8])).params, key)
    specs = nn.abstract(Model([8, 8])).params
    two = nn.initialise(specs, key)
    np.testing.assert_array_equal(one["layers.0.kernel"], two["layers.0.kernel"])
    assert np.abs(two["layers.0.kernel"] - two["layers.1.kernel"]).max() > 0.1
    rules = {"conv_in": "data", "conv_out": None, "channels": None}
    sharded = nn.initialise(specs, key, resolve_specs(specs, rules, make_mesh()))
    assert len(sharded["layers.0.kernel"].sharding.device_set) == 8
    for name in two:
        np.testing.assert_array_equal(two[name], sharded[name])


def test_bound_model_runs_under_jit_and_gives_its_statistics_back():
    abstract = nn.abstract(Model([3, 3]))
    params = nn.initialise(abstract.params, jax.random.key(0))
    statistics = nn.initialise(abstract.model_state, jax.random.key(0))

    @jax.jit
    def run(params, statistics, x):
        model = abstract.bind(params, statistics)
        return model(x), nn.stats(model)

    x = jnp.arange(6.0).reshape(2, 3)
    y, moved = run(params, statistics, x)
    np.testing.assert_allclose(y, x @ sum(params.values()), rtol=1e-6)
    for i in range(2):
        expected = (x @ params[f"layers.{i}.kernel"]).mean(0)
        np.testing.assert_allclose(moved[f"layers.{i}.mean"], expected, rtol=1e-6)
