"""What layers ask while they are traced: constraints, the platform, loops local to a device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib.sharding.constrain import (
    activate,
    active,
    batch_is_local,
    batch_local,
    constrain,
    lowered_for,
    platform,
)
from trainlib.sharding.mesh import AXES, make_mesh
from trainlib.sharding.rules import batch_sharding

RULES = {"batch": ("replica", "data"), "conv_in": "data", "conv_out": None, "heads": "model"}


@pytest.fixture
def mesh():
    return make_mesh(2, 2, 2)


def test_constrain_acts_only_under_a_mesh(mesh):
    x = jnp.ones((8, 4))
    assert constrain(x, "no_such_axis", None) is x

    def constrained(x):
        with activate(mesh, RULES):
            return constrain(x, "batch", None)

    assert jax.jit(constrained)(x).sharding.spec[0] == ("replica", "data")


def test_platform_is_that_of_the_mesh_and_of_what_is_asked_for(mesh):
    assert platform() == jax.default_backend() == "cpu"
    device = AbstractDevice("TPU v5 lite", 1, platform="tpu")
    elsewhere = AbstractMesh((2, 2, 2), AXES, abstract_device=device)
    with activate(elsewhere, RULES):
        assert platform() == "tpu"
        with lowered_for("cuda"):
            assert platform() == "gpu"
        with activate(mesh, RULES):
            assert platform() == "cpu"
        assert platform() == "tpu"
    assert platform() == "cpu"


def test_batch_local_equals_the_plain_function_with_gradients(mesh):
    """A loop under shard_map: same values, and gradients of shared arrays are summed."""
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(8, 3))), jnp.asarray(rng.normal(size=(3, 2)))

    def loss(x, w, active):
        def local(x, w):
            return jax.lax.map(lambda row: jnp.tanh(row @ w), x)

        if not active:
            return jnp.sum(local(x, w) ** 2)
        with activate(mesh, RULES):
            return jnp.sum(batch_local(local)(x, replicated=(w,)) ** 2)

    expected = jax.value_and_grad(loss, (0, 1))(x, w, False)
    found = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)(x, w, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), expected, found)


def test_batch_local_gathers_nothing(mesh):
    """What the wrapper is for: each device loops over its own rows, without communication."""

    def run(x):
        with activate(mesh, RULES):
            return batch_local(lambda x: jax.lax.map(jnp.sin, x))(x)

    rows = batch_sharding(RULES, mesh)
    text = jax.jit(run, in_shardings=rows, out_shardings=rows).lower(jnp.ones((8, 4))).compile()
    assert "all-gather" not in text.as_text()


def test_a_layer_in_a_function_of_the_user_is_sharded_under_the_mesh_of_jax(mesh):
    x = jnp.ones((8, 4))
    split = jax.jit(lambda x: constrain(x, "batch", "any_other_axis"))
    assert split(x).sharding.is_fully_replicated
    with jax.set_mesh(mesh):
        assert split(x).sharding.spec[0] == AXES
        assert jax.jit(lambda x: constrain(x, "layer_batch", "mlp"))(x).sharding.spec == P(
            ("replica", "data"), "model"
        )
        assert active() is not None
        looped = jax.jit(batch_local(lambda x: jax.lax.map(jnp.sin, x)))
        rows = NamedSharding(mesh, P(AXES))
        text = looped.lower(jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=rows))
        assert "all-gather" not in text.compile().as_text()
        np.testing.assert_allclose(looped(x), jnp.sin(x), rtol=1e-6)
    assert active() is None


def test_rules_of_a_step_go_before_those_that_follow_from_the_mesh(mesh):
    with jax.set_mesh(make_mesh(1, 4, 2)), activate(mesh, RULES):
        assert active() == (mesh, RULES)


def test_meshes_of_others_and_the_inside_of_a_shard_map_are_left_alone(mesh):
    x = jnp.ones((8, 4))
    others = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    for foreign in (others, explicit):
        with jax.set_mesh(foreign):
            assert active() is None
            assert constrain(x, "batch", None) is x
    with activate(mesh, RULES):
        inside = []
        jax.eval_shape(
            jax.shard_map(
                lambda x: inside.append(active()) or x, mesh=mesh, in_specs=P(), out_specs=P()
            ),
            x,
        )
    assert inside == [None]


def test_where_the_batch_is_local_to_a_device(mesh):
    """A kernel cannot be split by the partitioner: it needs `batch_local` to have something to do,
    or nothing to be split.
    """
    assert batch_is_local()
    with activate(mesh, RULES):
        assert batch_is_local()
    with activate(make_mesh(1, 1, 8), RULES):  # heads are split, and no rule splits the batch
        assert not batch_is_local()
    with jax.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))):
        assert not batch_is_local()
    with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))):
        assert batch_is_local()
    inside = []
    with activate(mesh, RULES):
        local = batch_local(lambda x: inside.append(batch_is_local()) or x)
        jax.eval_shape(local, jnp.ones((8, 4)))
    assert inside == [True]
