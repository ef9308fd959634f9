"""safetensors: the library reads what we write, we read what it writes, shards of every size."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from trainlib.errors import CheckpointError
from trainlib.formats import safetensors as io

BF16 = np.dtype(ml_dtypes.bfloat16)


def tensors(seed=0):
    random = np.random.default_rng(seed)
    return {
        "a.weight": random.normal(size=(5, 3)).astype(np.float32),
        "b.weight": random.normal(size=(4, 2, 3)).astype(BF16),
        "c": np.array(random.normal(), np.float32),
        "d/e:f-g": random.normal(size=(7,)).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "ids": random.integers(0, 9, (3,), dtype=np.int64),
    }


def write(path, values, shard_size, order=None, origin=None):
    shapes = {n: (v.shape, v.dtype) for n, v in values.items()}
    files = io.plan(path, shapes, shard_size, origin or {})
    with io.Writer(path, files) as writer:
        for name in order or values:
            writer.write(name, values[name])
    (path / io.INDEX).write_text(io.index_text(files))
    return files


@pytest.mark.parametrize("shard_size", [1, 40, 100, 10**9])
def test_the_library_reads_what_is_written(shard_size, tmp_path):
    values = tensors()
    files = write(tmp_path, values, shard_size, order=list(reversed(values)))
    found = {}
    for file in files:
        assert (tmp_path / file.name).stat().st_size == file.size
        with safe_open(tmp_path / file.name, "numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                if values[name].dtype != BF16:
                    found[name] = opened.get_tensor(name)
    for name, value in found.items():
        np.testing.assert_array_equal(value, values[name], strict=True)
    assert set(found) | {"b.weight"} == set(values)
    index = json.loads((tmp_path / io.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in values.values())
    assert set(index["weight_map"]) == set(values)
    sizes = [sum(t.stop - t.start for t in file.tensors.values()) for file in files]
    assert all(s <= shard_size or len(f.tensors) == 1 for s, f in zip(sizes, files, strict=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        {f.name for f in files} | {io.INDEX}
    )


@pytest.mark.parametrize("shard_size", [40, 10**9])
def test_what_is_written_comes_back(shard_size, tmp_path):
    values = tensors()
    write(tmp_path, values, shard_size)
    reader = io.Reader(tmp_path)
    assert set(reader.tensors) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(reader.read(name), value, strict=True)


def test_files_of_the_library_are_read(tmp_path):
    values = {n: v for n, v in tensors().items() if v.dtype != BF16}
    save_file(values, tmp_path / "x.safetensors", metadata={"format": "np"})
    reader = io.Reader(tmp_path / "x.safetensors")
    for name, value in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(reader.read(name), value, strict=True)


def test_a_tensor_that_is_not_written_is_an_error_and_leaves_no_file(tmp_path):
    values = tensors()
    files = io.plan(tmp_path, {n: (v.shape, v.dtype) for n, v in values.items()}, 10**9, {})
    with pytest.raises(ValueError, match="5 tensors"), io.Writer(tmp_path, files) as writer:
        writer.write("a.weight", values["a.weight"])
    assert not list(tmp_path.iterdir())


def test_two_who_write_one_file_never_mix(tmp_path):
    values = tensors(0), tensors(1)
    files = io.plan(tmp_path, {n: (v.shape, v.dtype) for n, v in values[0].items()}, 10**9, {})
    first, second = io.Writer(tmp_path, files), io.Writer(tmp_path, files)
    last = list(values[0])[-1]
    for writer, own in zip((first, second), values, strict=True):
        for name in list(own)[:-1]:
            writer.write(name, own[name])
    with pytest.raises(FileNotFoundError):
        first.write(last, values[0][last])
    second.write(last, values[1][last])
    reader = io.Reader(tmp_path)
    for name, value in values[1].items():
        np.testing.assert_array_equal(reader.read(name), value, strict=True)
    assert [p.name for p in tmp_path.iterdir()] == [io.SINGLE]


def test_a_tensor_of_another_form_is_an_error(tmp_path):
    files = io.plan(tmp_path, {"a": ((2, 2), np.dtype("f4"))}, 100, {})
    with pytest.raises(ValueError, match="planned"), io.Writer(tmp_path, files) as writer:
        writer.write("a", np.zeros((2, 2), np.float64))


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    values = tensors()
    write(tmp_path, values, 10**9)
    reader = io.Reader(tmp_path)
    with open(tmp_path / io.SINGLE, "r+b") as file:
        file.truncate(400)
    with pytest.raises(CheckpointError, match="cut off"):
        reader.read("ids")


def test_every_length_of_the_header_is_read(tmp_path):
    """640 bytes begin as a pickle (80 02), 35,615 as gzip (1f 8b): the whole form counts."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    lengths = [*range(-len(header) % 8 + len(header), 70_000, 8), 0x8B1F, 0x0280 + 2**16]
    with open(tmp_path / "model.safetensors", "w+b") as file:
        for length in lengths:
            file.seek(0)
            file.write(length.to_bytes(8, "little") + header.ljust(length) + b"\x07")
            file.truncate()
            file.flush()
            found, _ = io.read_header(tmp_path / "model.safetensors")
            assert found["a"].start == 8 + length
    assert io.Reader(tmp_path).read("a").tolist() == [7]


@pytest.mark.parametrize(
    "start", [b"\x80\x02", b"\x80\x04\x95", b"PK\x03\x04", b"\x1f\x8b", b"\x89HDF"]
)
def test_what_is_no_safetensors_is_named_by_its_beginning(start, tmp_path):
    path = tmp_path / "model.safetensors"
    for rest in (
        b"\0" * 900,
        b"{" * 900,
        b"ccopy_reg\n" * 90,
        b"\0" * (7 - len(start)) + b"{" * 99,
    ):
        path.write_bytes(start + rest)
        with pytest.raises(CheckpointError, match=r"is an? .*not safetensors"):
            io.read_header(path)
