"""The file of a record, and what does not get into one."""

import dataclasses
import json

import numpy as np
import pytest

from moe.analysis import record
from moe.analysis.record import Record, Recorder, StackRecord
from trainlib.errors import DataError, NumericAbort


@pytest.fixture
def made():
    rng = np.random.default_rng(0)
    shape = (2, 3, 7, 2)
    stack = StackRecord(
        tokens=rng.integers(0, 300, shape[1:3], dtype=np.int32),
        segments=np.ones(shape[1:3], np.int32),
        targets=rng.integers(0, 300, shape[1:3], dtype=np.int32),
        expert=rng.integers(0, 5, shape, dtype=np.uint8),
        gate=rng.random(shape).astype(np.float16),
        placed=rng.random(shape) < 0.7,
        entropy=rng.random(shape[:3]).astype(np.float16),
        blocks=(1, 3),
        experts=4,
        ordered=False,
    )
    return Record({"encoder": stack}, np.asarray([0, 1, 1]), ("en", "de"), {"step": 3})


def test_a_record_is_read_as_it_was_written(made, tmp_path):
    record.write(made, tmp_path / "r.npz")
    found = record.read(tmp_path / "r.npz")
    assert (found.labels, found.facts, found.tokens) == (("en", "de"), {"step": 3}, 21)
    np.testing.assert_array_equal(found.label, made.label)
    for field in dataclasses.fields(StackRecord):
        mine, theirs = (getattr(r.stacks["encoder"], field.name) for r in (made, found))
        np.testing.assert_array_equal(mine, theirs)
        assert np.asarray(mine).dtype == np.asarray(theirs).dtype


def test_the_first_choice_where_experts_choose(made):
    stack = made.stacks["encoder"]
    first = stack.first(1)
    taken = stack.placed[1].any(-1)
    np.testing.assert_array_equal(first[taken], stack.gate[1].argmax(-1)[taken])
    assert (first[~taken] == 4).all()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x93NUMPY"])
def test_another_file(content, tmp_path):
    (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(DataError, match="no record of routing"):
        record.read(tmp_path / "r.npz")


def test_a_file_that_was_cut(made, tmp_path):
    path = tmp_path / "r.npz"
    record.write(made, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="no record of routing"):
        record.read(path)


def changed(made, path, **arrays):
    """A file of the record with other arrays; `about` is changed by a function."""
    record.write(made, path)
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    for name, value in arrays.items():
        name = name.replace("__", "/")
        found[name] = value(found[name]) if callable(value) else value
    np.savez(path, **found)


def other_facts(**facts):
    def change(about):
        content = json.loads(str(about))
        content["stacks"]["encoder"] |= facts
        return np.asarray(json.dumps(content))

    return change


@pytest.mark.parametrize(
    "arrays",
    [
        {"label": np.asarray([0, 1, 2])},
        {"label": np.asarray([0, 1])},
        {"label": np.asarray(["a", "b", "c"])},
        {"about": np.asarray('{"format": 9}')},
        {"about": np.asarray("[" * 100_000)},
        {"about": np.asarray("[1]")},
        {"about": other_facts(blocks=[1])},
        {"about": other_facts(blocks=["x", "y"])},
        {"about": other_facts(experts=3)},
        {"about": other_facts(experts=10**30)},
        {"encoder__expert": lambda x: x.astype(np.int64) - 9},
        {"encoder__expert": lambda x: x[..., None]},
        {"encoder__gate": lambda x: x[:1]},
        {"encoder__gate": lambda x: x.astype(object)},
        {"encoder__placed": lambda x: x[:-1]},
        {"encoder__tokens": lambda x: -x - 1},
        {"encoder__entropy": lambda x: x.astype("U4")},
    ],
    ids=lambda arrays: next(iter(arrays)),
)
def test_a_file_that_says_something_else_is_refused(arrays, made, tmp_path):
    changed(made, tmp_path / "r.npz", **arrays)
    with pytest.raises(DataError, match="no record of routing"):
        record.read(tmp_path / "r.npz")


def test_a_file_of_another_stack_is_refused(made, tmp_path):
    other = dataclasses.replace(made, stacks={"../up": made.stacks["encoder"]})
    record.write(other, tmp_path / "r.npz")
    with pytest.raises(DataError, match="no record of routing"):
        record.read(tmp_path / "r.npz")


def test_logits_that_are_not_finite_are_named(small):
    segments = np.ones((2, 4), np.int32)
    batch = {
        f"{stack}_{name}": segments
        for stack in ("encoder", "decoder")
        for name in ("inputs", "segments", "targets")
    }
    found = {
        "expert": np.zeros((2, 2, 4, 2), np.uint8),
        "gate": np.zeros((2, 2, 4, 2), np.float16),
        "placed": np.zeros((2, 2, 4, 2), bool),
        "entropy": np.zeros((2, 2, 4), np.float16),
        "nonfinite": np.asarray([0.0, 5.0]),
    }
    with pytest.raises(NumericAbort, match=r"encoder\.3 .* for 5 tokens"):
        Recorder(small()).add((batch, {"encoder": found}), 0)
