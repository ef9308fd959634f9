"""Abstract weights: nothing is allocated at declaration; values depend on key and name alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


def test_a_weight_is_abstract_without_rngs_and_an_array_with_them():
    for declare, kind in ((nn.declare, nnx.Param), (nn.declare_stat, nnx.BatchStat)):
        abstract = declare((3, 4), ("conv_in", "conv_out"), NORMAL)
        concrete = declare((3, 4), ("conv_in", "conv_out"), NORMAL, nnx.Rngs(0))
        assert isinstance(abstract, kind)
        assert isinstance(concrete, kind)
        assert isinstance(abstract.get_value(), jax.ShapeDtypeStruct)
        assert isinstance(concrete.get_value(), jax.Array)
        assert abstract.get_value().shape == concrete.get_value().shape == (3, 4)
        assert abstract.get_value().dtype == concrete.get_value().dtype == jnp.float32
        for variable in (abstract, concrete):
            assert variable.get_metadata()["axes"] == ("conv_in", "conv_out")
            assert variable.get_metadata()["init"] is NORMAL


def test_a_weight_has_the_type_that_is_declared():
    for rngs in (None, nnx.Rngs(0)):
        weight = nn.declare((2,), ("channels",), ZEROS, rngs, jnp.bfloat16)
        assert weight.get_value().dtype == jnp.bfloat16


@pytest.mark.parametrize("rngs", [None, nnx.Rngs(0)])
def test_every_dimension_has_an_axis(rngs):
    with pytest.raises(ValueError, match=r"shape \(2, 3\) needs 2 logical axes"):
        nn.declare((2, 3), ("channels",), ZEROS, rngs)
    with pytest.raises(ValueError, match="needs 1 logical axes"):
        nn.declare_stat((2,), (), ZEROS, rngs)


def test_each_declaration_takes_the_next_key_of_the_stream_of_weights():
    def two(rngs):
        return [nn.declare((8,), ("channels",), NORMAL, rngs).get_value() for _ in range(2)]

    first, second = two(nnx.Rngs(params=1, dropout=2))
    np.testing.assert_array_equal(first, NORMAL(nnx.Rngs(params=1).params(), (8,), jnp.float32))
    assert np.abs(first - second).max() > 0.1
    for again in (two(nnx.Rngs(params=1, dropout=3)), two(nnx.Rngs(1))):
        np.testing.assert_array_equal(again, [first, second])
    assert np.abs(two(nnx.Rngs(4))[0] - first).max() > 0.1


class Mixed(nnx.Module):
    """A module of a user: a layer of ours between two of Flax."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.ours = Layer(8)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.ours(self.first(x)), use_running_average=True)


def test_a_module_may_mix_our_layers_with_those_of_flax():
    module = Mixed(nnx.Rngs(0))
    abstract = nn.abstract(module)
    kernel = abstract.params["first.kernel"]
    assert (kernel.shape, kernel.axes) == ((3, 8), (None, None))
    assert set(abstract.model_state) == {"ours.mean", "norm.mean", "norm.var"}
    mesh = make_mesh()
    rules = {"conv_in": "data", "conv_out": None, "channels": None}
    shardings = resolve_specs(abstract.params, rules, mesh)
    params = nn.initialise(abstract.params, jax.random.key(0), shardings)
    assert params["first.kernel"].sharding.is_fully_replicated
    assert len(params["first.kernel"].sharding.device_set) == 8
    np.testing.assert_array_equal(params["first.kernel"], module.first.kernel[...])
    statistics = nn.initialise(abstract.model_state, jax.random.key(0))
    y = abstract.bind(params, statistics)(jnp.ones((2, 3)))
    x = module.first(jnp.ones((2, 3))) @ params["ours.kernel"]
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-5)
    for value in params.values():  # as a donated state is; the module's own stay
        value.delete()
    assert np.isfinite(module.first.kernel[...]).all()


def test_what_cannot_be_carried_outside_a_module_is_refused():
    with pytest.raises(ValueError, match=r"'rngs\.count' of the model is of the type RngCount"):
        nn.abstract(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    linear.kernel = nnx.Param(jax.ShapeDtypeStruct((2, 3), jnp.float32))
    with pytest.raises(ValueError, match="'kernel' has neither a value nor an initialiser"):
        nn.abstract(linear)
