"""A state that cannot fit is refused before anything is allocated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import load
from trainlib.errors import ConfigError
from trainlib.sharding.mesh import make_mesh
from trainlib.step import memory
from vitattn import plan as vision
from vitattn import train


def test_bytes_on_a_device_follow_the_sharding():
    mesh = make_mesh(1, 2, 4)

    def struct(spec, shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    tree = {
        "split": struct(P("data", "model"), (6, 8), jnp.float32),  # 3 x 2 x 4
        "both": struct(P(("data", "model")), (16,), jnp.bfloat16),  # 2 x 2
        "whole": struct(P(), (5,), jnp.int32),  # 20
    }
    assert memory.device_bytes(tree) == 3 * 2 * 4 + 2 * 2 + 20


def test_weights_slots_and_gradients_count(monkeypatch):
    config = load("reproduce_small", optimizer={"name": "sgd", "momentum": 0.9})
    plan = vision.make(config)
    # Weights, one slot and one gradient of each, in float32, and what is small beside them.
    least = 3 * 4 * plan.abstract.param_count
    monkeypatch.setattr(memory, "device_memory", lambda devices: least)
    with pytest.raises(ConfigError, match=r"738,586 parameters .* take 0\.0 GiB a device"):
        memory.check_memory(plan)
    monkeypatch.setattr(memory, "device_memory", lambda devices: 2 * least)
    memory.check_memory(plan)


def test_a_training_that_cannot_fit_leaves_no_run(tmp_path):
    # 16 times the width: 6 billion parameters, 90 GiB on each of 8 CPU devices that share the host.
    config = load("resnet50:digits", model={"width": 16.0}, data={"workers": 0})
    with pytest.raises(ConfigError, match=r"The train state of resnet50:digits does not fit"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_devices_of_a_cpu_share_the_memory_of_the_host():
    one, eight = (memory.device_memory(jax.devices()[:n]) for n in (1, 8))
    assert one is not None
    assert eight is not None
    np.testing.assert_allclose(eight, one / 8, rtol=1e-6)
