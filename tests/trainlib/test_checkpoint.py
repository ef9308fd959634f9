"""Checkpoints in real Orbax directories: bit-equal restores on any mesh, retention."""

import dataclasses
import stat

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainlib import state
from trainlib.checkpoint import Checkpoints, from_flat, to_flat
from trainlib.errors import CheckpointError, StorageError
from trainlib.mesh import make_mesh
from trainlib.nn import Abstract, Spec

RULES = {"conv_in": "data", "conv_out": None, "channels": None}
META = {"config": {"seed": 1}, "data": {"next_batch": 3}}


def weights(width: int = 16) -> Abstract:
    def spec(shape, axes):
        return Spec(shape, jnp.dtype("float32"), axes, jax.nn.initializers.normal(1.0))

    params = {
        "stem.0.kernel": spec((width, 6), ("conv_in", "conv_out")),
        "norm.scale": spec((6,), ("channels",)),
    }
    return Abstract(None, params, {"norm.mean": spec((6,), ("channels",))})


def make(mesh, width: int = 16):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    shardings = state.state_shardings(weights(width), optimizer, mesh, RULES, with_ema=True)
    real = state.create(weights(width), optimizer, jax.random.key(4), shardings)
    return real, state.abstract_state(weights(width), optimizer, shardings)


def equal(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in leaves)


def test_names_are_plain_and_go_there_and_back():
    real, _ = make(make_mesh())
    flat = to_flat(real)
    assert {"step", "params/stem.0.kernel", "model_state/norm.mean", "ema/norm.mean"} <= set(flat)
    assert all(isinstance(name, str) for name in flat)
    assert equal(from_flat(flat, real), real)


@pytest.mark.parametrize("sizes", [(1, 8), (2, 4), (4, 2)])
def test_a_restore_is_bit_equal_on_any_mesh(tmp_path, sizes):
    real, _ = make(make_mesh(1, 8))
    saved = Checkpoints(tmp_path)
    saved.save(3, real, META)
    saved.close()
    _, like = make(make_mesh(*sizes))
    opened = Checkpoints(tmp_path)
    found = opened.restore(3, like)
    assert equal(found, real)
    assert found.params["stem.0.kernel"].sharding == like.params["stem.0.kernel"].sharding
    assert opened.meta(3) == META
    opened.close()


def test_single_leaves_can_be_read(tmp_path):
    real, like = make(make_mesh())
    opened = Checkpoints(tmp_path)
    opened.save(1, real, META)
    opened.wait()
    name = "params/norm.scale"
    found = opened.restore_some(1, {name: like.params["norm.scale"]})
    assert list(found) == [name]
    np.testing.assert_array_equal(found[name], real.params["norm.scale"])
    opened.close()


def test_the_newest_and_the_best_stay(tmp_path):
    real, _ = make(make_mesh())
    opened = Checkpoints(tmp_path, keep=2, best="top1")
    for step, top1 in enumerate([0.1, 0.9, 0.3, 0.5, 0.2], start=1):
        opened.save(step, real, META, {"top1": top1})
    opened.save(6, real, META)  # one without an evaluation
    opened.wait()
    assert opened.steps() == [2, 5, 6]
    assert opened.latest() == 6
    assert opened.pick(None) == 6
    assert opened.pick(2) == 2
    with pytest.raises(CheckpointError, match="steps there: 2, 5, 6"):
        opened.pick(4)
    opened.close()


def test_another_model_is_refused_by_name(tmp_path):
    real, like = make(make_mesh())
    opened = Checkpoints(tmp_path)
    opened.save(1, real, META)
    opened.wait()
    _, wider = make(make_mesh(), width=24)
    with pytest.raises(CheckpointError, match=r"stem\.0\.kernel: \(16, 6\).*\(24, 6\) .*here"):
        opened.restore(1, wider)
    with pytest.raises(CheckpointError, match="holds another model: missing"):
        opened.restore_some(1, {"params/head.kernel": like.params["norm.scale"]})
    scale = like.params["norm.scale"]
    half = jax.ShapeDtypeStruct(scale.shape, jnp.bfloat16, sharding=scale.sharding)
    other = dataclasses.replace(like, params={**like.params, "norm.scale": half})
    with pytest.raises(CheckpointError, match=r"float32 in the checkpoint, .* bfloat16 here"):
        opened.restore(1, other)
    more = dataclasses.replace(like, params={**like.params, "head.bias": scale})
    with pytest.raises(CheckpointError, match=r"missing in the checkpoint: params/head\.bias"):
        opened.restore(1, more)
    opened.close()


def test_a_damaged_step_is_an_error_that_names_it(tmp_path):
    real, like = make(make_mesh())
    opened = Checkpoints(tmp_path)
    opened.save(1, real, META)
    opened.close()
    for data in (tmp_path / "1" / "state").rglob("d/*"):
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    opened = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=r"Step 1 in .* cannot be read"):
        opened.restore(1, like)
    opened.close()


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Writing to"):
        Checkpoints(tmp_path / "file" / "checkpoints")
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)
