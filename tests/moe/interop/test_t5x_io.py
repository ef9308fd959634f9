"""T5X checkpoints: what is written reads in tensorstore and flax, what those write reads here."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tensorstore
from flax import serialization

from moe.interop import t5x_io
from trainlib.errors import CheckpointError

BF16 = np.dtype(ml_dtypes.bfloat16)


def random(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def stored(folder, dtype="<f4"):
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    return tensorstore.open(spec, open=True).result()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=str)
@pytest.mark.parametrize("shape", [(7,), (5, 3), (3, 4, 2), (1, 1)])
@pytest.mark.parametrize("chunk", [24, 2**20])
def test_tensorstore_reads_what_is_written(shape, dtype, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(t5x_io, "_CHUNK", chunk)  # several chunks, the last not full; or one
    value = random(shape, dtype)
    t5x_io.write_array(tmp_path / "target.a", value, {})
    back = stored(tmp_path / "target.a")
    np.testing.assert_array_equal(back.read().result(), value, strict=True)
    assert back.chunk_layout.write_chunk.shape[1:] == shape[1:]
    again = t5x_io._read(t5x_io._describe(tmp_path / "target.a"))
    np.testing.assert_array_equal(again, value, strict=True)


def written_by_t5x(directory, arrays, *, on_cloud=False):
    """As T5X writes: tensorstore chunks of shards, the tree through flax."""
    target = {}
    for name, (value, chunks, dtype, compressor) in arrays.items():
        path = f"target.{name.replace('/', '.')}"
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{directory / path}/"},
            "metadata": {
                "shape": list(value.shape),
                "chunks": list(chunks),
                "dtype": dtype,
                "compressor": compressor,
            },
        }
        store = tensorstore.open(tensorstore.Spec(spec), create=True).result()
        store.write(value).result()
        node = target
        *outer, leaf = name.split("/")
        for part in outer:
            node = node.setdefault(part, {})
        node[leaf] = {
            "driver": "zarr",
            "dtype": str(value.dtype),
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "metadata": {"chunks": list(chunks), "shape": list(value.shape)},
        }
        if on_cloud:
            node[leaf]["kvstore"] = {"driver": "gcs", "bucket": "t5x-dummy-bucket"}
            node[leaf]["path"] = f"{path}/"
    target["small"] = {"scale": np.arange(3, dtype=np.float32)}
    state = {"step": np.int32(7), "param_states": {"a": {"m": np.zeros(1, np.float32)}}}
    tree = {"version": 3, "optimizer": {"target": target, "state": state}}
    (directory / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))


@pytest.mark.parametrize("on_cloud", [False, True])
def test_checkpoints_as_t5x_writes_them(tmp_path, on_cloud):
    gzip = {"id": "gzip", "level": 1}
    arrays = {
        "encoder/a/kernel": (random((8, 6), np.float32), (4, 3), "<f4", gzip),
        "encoder/b/kernel": (random((7, 5), np.float32, 1), (4, 3), "<f4", gzip),
        "decoder/c/kernel": (random((4, 4), BF16, 2), (2, 4), "bfloat16", gzip),
        "decoder/d/scale": (random((9,), np.float32, 3), (9,), "<f4", None),
    }
    step = tmp_path / "model" / "checkpoint_7"
    step.mkdir(parents=True)
    written_by_t5x(step, arrays, on_cloud=on_cloud)
    for place in (step, step.parent):
        checkpoint = t5x_io.Checkpoint(place)
        assert set(checkpoint.shapes) == {*arrays, "small/scale"}
        for name, (value, *_) in arrays.items():
            np.testing.assert_array_equal(checkpoint.read(name), value, strict=True)
        np.testing.assert_array_equal(checkpoint.read("small/scale"), np.arange(3.0))


def test_the_tree_is_what_t5x_reads(tmp_path):
    """Lists stay lists and paths are relative: T5X rejects anything else."""
    arrays = {"encoder/a/kernel": ((8, 6), np.dtype("f4")), "b/scale": ((3,), BF16)}
    t5x_io.write_tree(tmp_path, 12, arrays)
    tree = serialization.msgpack_restore((tmp_path / "checkpoint").read_bytes())
    assert tree["version"] == 3
    assert tree["optimizer"]["state"]["step"] == 12
    assert tree["optimizer"]["target"]["encoder"]["a"]["kernel"] == {
        "driver": "zarr",
        "dtype": "float32",
        "kvstore": {"driver": "file", "path": "target.encoder.a.kernel/"},
        "metadata": {
            "chunks": [8, 6],
            "compressor": {"id": "gzip", "level": 1},
            "shape": [8, 6],
        },
    }
    assert tree["optimizer"]["target"]["b"]["scale"]["dtype"] == "bfloat16"


def test_the_last_step_is_taken(tmp_path):
    for step in (5, 40, 7):
        (tmp_path / f"checkpoint_{step}").mkdir()
        t5x_io.write_tree(tmp_path / f"checkpoint_{step}", step, {})
    (tmp_path / "checkpoint_100").mkdir()  # without its file: not finished
    assert t5x_io.find(tmp_path).name == "checkpoint_40"
    with pytest.raises(CheckpointError, match="no T5X checkpoint"):
        t5x_io.find(tmp_path / "checkpoint_100")
