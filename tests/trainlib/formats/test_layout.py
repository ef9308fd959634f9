"""Tables of pairs, shares of work, and reading strangers' files."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest

from trainlib import untrusted_files as untrusted
from trainlib.errors import CheckpointError
from trainlib.formats import layout as interchange
from trainlib.formats import weight_source as weights
from trainlib.formats.layout import TRANSPOSED, Entry, Layout
from trainlib.model import weights as nn

ONES = jax.nn.initializers.ones


def spec(*shape: int) -> nn.Spec:
    return nn.Spec(shape, np.dtype("f4"), ("x",) * len(shape), ONES)


SPECS = {"stack": spec(2, 3, 4), "table": spec(5)}
LAYOUT = Layout(
    "theirs",
    (
        *(Entry(f"layer.{n}", "stack", (n,), TRANSPOSED) for n in range(2)),
        Entry("table", "table"),
        Entry("again", "table", copy=True, written=False),
    ),
    ignored=(r"^seen$",),
)


def test_a_match_sorts_names_into_four_kinds():
    there = {"layer.0": (4, 3), "layer.1": (3, 4), "seen": (), "more": (2,)}
    found = interchange.match(LAYOUT, SPECS, there)
    assert found.mapped == {"layer.0": (4, 3)}
    assert found.misshaped == ["layer.1: (3, 4) there, (4, 3) here"]
    assert found.missing == ["table (5,), for table"]
    assert found.unexpected == ["more (2,)"]
    text = found.table("title")
    assert "1 tensors, 12 numbers" in text
    assert "mis-shaped  1" in text
    with pytest.raises(CheckpointError, match=r"1 missing .* 1 mis-shaped .* 1 unexpected"):
        found.check("file")
    whole = {"layer.0": (4, 3), "layer.1": (4, 3), "table": (5,), "more.x": ()}
    interchange.match(LAYOUT, SPECS, whole, ["^more"]).check("file")


def test_copies_that_are_not_written_are_accepted():
    leaf = np.arange(5, dtype=np.float32)
    written = LAYOUT.by_leaf(written=True)["table"]
    assert [name for name, _ in interchange.give(written, leaf, None)] == ["table"]
    entries = LAYOUT.by_leaf()["table"]
    there = {"table": leaf, "again": leaf}
    for names in (there, ["table"]):
        found = interchange.take(entries, SPECS["table"], names, there.__getitem__)
        np.testing.assert_array_equal(found, leaf, strict=True)
    there["again"] = leaf + 1
    with pytest.raises(CheckpointError, match="again differs"):
        interchange.take(entries, SPECS["table"], there, there.__getitem__)


@pytest.mark.parametrize("index", [(), (1,), (slice(None), 2), (0, slice(None), 3), (1, 2, 3)])
def test_the_shape_of_a_piece_is_numpys(index):
    assert interchange.slots((2, 3, 4), index) == np.zeros((2, 3, 4))[index].shape


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 40])
def test_shares_cover_everything_once_and_are_about_equal(parts):
    random = np.random.default_rng(parts)
    sizes = {f"leaf{n}": int(random.integers(1, 1000)) for n in range(25)}
    shares = [weights.part_of(sizes, part, parts) for part in range(parts)]
    assert [name for share in shares for name in share] == list(sizes)
    loads = [sum(sizes[name] for name in share) for share in shares]
    assert max(loads) <= sum(sizes.values()) / parts + max(sizes.values())


def test_links_pipes_and_folders_are_not_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert untrusted.read_small(tmp_path / "file", 5) == b"12345"
    for name, reason in (
        ("link", "symbolic link"),
        ("pipe", "not a regular file"),
        ("", "not a regular file|cannot be read"),
        ("none", "cannot be read"),
        ("a\0b", "no file name"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            untrusted.read_small(tmp_path / name, 5)
    with pytest.raises(CheckpointError, match="larger"):
        untrusted.read_small(tmp_path / "file", 4)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, 11, 2**80])
def test_only_integers_in_range_are_integers(value):
    assert untrusted.integer(10, "n", 0, 10) == 10
    with pytest.raises(CheckpointError, match="from 0 to 10"):
        untrusted.integer(value, "n", 0, 10)


def test_more_than_the_memory_of_the_machine_is_refused():
    untrusted.check_memory(2**20, "a small model")
    with pytest.raises(CheckpointError, match="GiB"):
        untrusted.check_memory(2**60, "a large model")
