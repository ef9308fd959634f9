"""Checkpoints in real Orbax directories: bit-equal restores on any mesh, names, retention."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from tests.trainlib.checkpoint.states import META, equal, make, shapes
from trainlib.checkpoint.checkpoints import Checkpoints, from_flat, to_flat
from trainlib.errors import CheckpointError, NumericAbort, StorageError
from trainlib.sharding.mesh import make_mesh


def test_names_are_plain_and_go_there_and_back():
    real, _ = make(make_mesh())
    flat = to_flat(real)
    assert {"step", "params/stem.0.kernel", "model_state/norm.mean", "ema/norm.mean"} <= set(flat)
    assert all(isinstance(name, str) for name in flat)
    assert equal(from_flat(flat, real), real)


LAYOUTS = [(1, 1, 1), (1, 1, 2), (2, 1, 1), (1, 4, 1), (2, 2, 2), (1, 8, 1), (1, 4, 2)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A step saved on eight devices, (data 4, model 2)."""
    folder = tmp_path_factory.mktemp("saved")
    real, _ = make(make_mesh(1, 4, 2))
    opened = Checkpoints(folder, axes={"stem.0.kernel": ("conv_in", "conv_out")})
    opened.save(3, real, META, {"top1": 0.5})
    opened.close()
    return folder, real


@pytest.mark.parametrize("sizes", LAYOUTS)
def test_a_restore_is_bit_equal_on_any_mesh(saved, sizes):
    folder, real = saved
    like = shapes(make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)]))
    opened = Checkpoints(folder)
    found = opened.restore(3, like)
    assert equal(found, real)
    assert found.params["stem.0.kernel"].sharding == like.params["stem.0.kernel"].sharding
    assert opened.meta(3) == META
    opened.close()


def test_a_manifest_says_what_was_saved_and_how(saved):
    folder, _ = saved
    found = Checkpoints(folder).manifest(3)
    assert (found.step, dict(found.mesh)) == (3, {"replica": 1, "data": 4, "model": 2})
    assert found.metrics == {"top1": 0.5}
    for name in ("params/stem.0.kernel", "opt_state/1/0/mu/stem.0.kernel", "ema/stem.0.kernel"):
        leaf = found.leaves[name]
        assert (leaf.shape, leaf.dtype) == ((16, 6), "float32")
        assert leaf.axes == ("conv_in", "conv_out")
        assert leaf.partition == (("data",), ("model",))
    assert found.leaves["step"].axes is None
    on_disk = {path for path in (folder / "3").rglob("*") if path.is_file()}
    assert {folder / "3" / name for name in (*found.files, "manifest.json")} == on_disk


def test_reading_writes_nothing(saved, tmp_path):
    folder, _ = saved
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    opened = Checkpoints(folder)
    opened.pick(None)
    opened.restore(3, shapes(make_mesh()))
    opened.close()
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before
    nothing = Checkpoints(tmp_path / "none")
    assert (nothing.steps(), nothing.latest()) == ([], None)
    with pytest.raises(CheckpointError, match="steps there: none"):
        nothing.pick(None)
    nothing.close()
    assert not (tmp_path / "none").exists()


def test_single_leaves_can_be_read(saved):
    folder, real = saved
    like = shapes(make_mesh())
    name = "params/norm.scale"
    found = Checkpoints(folder).restore_some(3, {name: like.params["norm.scale"]})
    assert list(found) == [name]
    np.testing.assert_array_equal(found[name], real.params["norm.scale"])


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
    before = (tmp_path / "6" / "manifest.json").stat().st_mtime_ns
    opened.save(6, real, META)  # it is there
    opened.close()
    assert (tmp_path / "6" / "manifest.json").stat().st_mtime_ns == before


def test_the_smallest_is_best_where_one_says_so(tmp_path):
    real, _ = make(make_mesh())
    opened = Checkpoints(tmp_path, keep=1, best="loss", larger_is_better=False)
    for step, loss in enumerate([math.nan, 1.0, 2.0], start=1):
        opened.save(step, real, META, {"loss": loss})
    opened.close()
    assert opened.steps() == [2, 3]


def test_another_model_is_refused_by_name(saved):
    folder, _ = saved
    like = shapes(make_mesh())
    opened = Checkpoints(folder)
    wider = shapes(make_mesh(), width=24)
    with pytest.raises(CheckpointError, match=r"stem\.0\.kernel: \(16, 6\).*\(24, 6\) .*here"):
        opened.restore(3, wider)
    with pytest.raises(CheckpointError, match="holds another model: missing"):
        opened.restore_some(3, {"params/head.kernel": like.params["norm.scale"]})
    scale = like.params["norm.scale"]
    half = jax.ShapeDtypeStruct(scale.shape, jnp.bfloat16, sharding=scale.sharding)
    other = dataclasses.replace(like, params={**like.params, "norm.scale": half})
    with pytest.raises(CheckpointError, match=r"float32 in the checkpoint, .* bfloat16 here"):
        opened.restore(3, other)
    more = dataclasses.replace(like, params={**like.params, "head.bias": scale})
    with pytest.raises(CheckpointError, match=r"missing in the checkpoint: params/head\.bias"):
        opened.restore(3, more)
    less = dataclasses.replace(like, params={"norm.scale": scale})
    with pytest.raises(CheckpointError, match=r"not in this model: params/stem\.0\.kernel"):
        opened.restore(3, less)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, value):
    real, like = make(make_mesh(1, 8))
    opened = Checkpoints(tmp_path, keep=1)
    opened.save(1, real, META)
    scale = real.params["norm.scale"]
    bad = {**real.params, "norm.scale": jax.device_put(scale.at[2].set(value), scale.sharding)}
    with pytest.raises(NumericAbort, match=r"after step 2 .*params/norm\.scale \(1 values\)"):
        opened.save(2, dataclasses.replace(real, params=bad), META)
    assert opened.steps() == [1]
    assert equal(opened.restore(1, like), real)
    opened.close()


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    real, _ = make(make_mesh())
    with pytest.raises(StorageError, match=r"Writing to .* failed: .*File exists"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, real, META)


def test_a_manifest_is_plain_json(saved):
    folder, _ = saved
    content = json.loads((folder / "3" / "manifest.json").read_text())
    assert set(content) == {"sha256", "manifest"}
    assert content["manifest"]["meta"] == META


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 2)])
def test_a_checkpoint_of_an_earlier_release_is_read(sizes):
    """`golden/format1` was written by jax 0.10.2 and Orbax 0.12.8; every leaf counts up by 1/8."""
    opened = Checkpoints(Path(__file__).parent / "golden" / "format1")
    like = shapes(make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)]))
    found = opened.restore(5, like)
    for leaf in jax.tree.leaves(found):
        ramp = np.arange(leaf.size).reshape(leaf.shape) / 8 + 0.125
        np.testing.assert_array_equal(leaf, ramp.astype(leaf.dtype))
    assert (opened.latest(), opened.meta(5)) == (5, META)
    assert opened.manifest(5).metrics == {"top1": 0.75}


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_are_compressed_where_that_is_asked_for_and_read_the_same(tmp_path, compress):
    real, like = make(make_mesh())
    zeros = dataclasses.replace(real, ema=jax.tree.map(jnp.zeros_like, real.ema))
    opened = Checkpoints(tmp_path, compress=compress)
    opened.save(1, zeros, META)
    opened.wait()
    with ocp.StandardCheckpointer() as reader:  # anyone's Orbax reads both
        plain = reader.restore(tmp_path / "1")
    name = "params/stem.0.kernel"
    np.testing.assert_array_equal(plain[name], to_flat(zeros)[name])
    assert equal(opened.restore(1, like), zeros)
    opened.close()
    store = {"driver": "file", "path": f"{tmp_path}/1/"}
    kvstore = {"driver": "ocdbt", "base": store, "path": f"{name}/"}
    written = tensorstore.open({"driver": "zarr", "kvstore": kvstore}, open=True).result()
    compressor = written.spec().to_json()["metadata"]["compressor"]
    assert (compressor or {}).get("id") == ("zstd" if compress else None)


def test_a_piece_is_read_where_it_stays_and_copies_do_not_share_their_future(tmp_path):
    """A CPU device takes over the memory that was read into. All copies of an array on one host
    then begin as the same memory, and a step that is given one of them must not change the others.
    """
    mesh = make_mesh(8, 1, 1)
    real, like = make(mesh)
    opened = Checkpoints(tmp_path)
    opened.save(1, real, META)
    opened.wait()
    kernel = opened.restore(1, like).params["stem.0.kernel"]
    opened.close()
    places = {shard.data.unsafe_buffer_pointer() for shard in kernel.addressable_shards}
    assert len(places) == 1
    assert not places.pop() % 64
    before = np.array(kernel)
    first = kernel.addressable_shards[0].data
    others = [shard.data for shard in kernel.addressable_shards[1:]]
    twice = jax.jit(lambda x: 2 * x, donate_argnums=0)(first)
    np.testing.assert_array_equal(twice, 2 * before)
    for other in others:
        np.testing.assert_array_equal(other, before)
