"""The measurement of the sources, on small texts whose figures are counted by hand."""

import ast
from pathlib import Path

import pytest

from benchmarks import house

ROOT = Path(__file__).resolve().parents[2]


def test_equal_lines_of_two_loops(tmp_path):
    """Of four and three lines, the head and the last are equal; blank lines count nothing."""
    (tmp_path / "a.py").write_text("def run(x):\n    y = x\n\n    z = y\n    return x\n")
    (tmp_path / "b.py").write_text(
        "def other():\n    y = x\n\n\ndef run(x):\n    w = 1\n    return x\n"
    )
    assert house.equal_lines(tmp_path / "a.py", tmp_path / "b.py") == (2, [4, 3])


SHAPES = '''
def says(x: Array) -> Array:
    """Turns x [B, L, D] round."""
def says_dtype(x):
    """The mean, f32[]; of logits f32[B, V]."""
def is_silent(x: dict[str, Array]) -> list[int]:
    """Reads batch["image"] and numbers in [0, 1]."""
def _private(x):
    """[B]"""
class Layer:
    def __init__(self, x: Array): ...
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D]."""
    def size(self) -> int: ...
'''


def test_documented_shapes():
    tree = ast.parse(SHAPES)
    assert house.documented_shapes([tree], methods=False) == (2, 3)
    # With an array in their signature: says, is_silent, __call__.
    assert house.documented_shapes([tree], methods=True) == (2, 3)


def test_untyped_configurations():
    tree = ast.parse("def f(config: Any, other: Any): ...\nclass A:\n    config: Any\n")
    assert house.untyped_configs(tree) == 2


def test_names_and_aliases():
    tree = ast.parse(
        "from a import b as c, d\nimport a.b as e\nfrom x import y as z\n"
        "def found(kept): self.place = made = kept\n"
    )
    assert sorted(house.bound(tree)) == ["found", "kept", "made", "place"]
    assert list(house.module_aliases(tree, {"a.b": Path(), "a.d": Path()})) == [
        "a.b as c",
        "a.b as e",
    ]


def test_the_places_to_touch_are_there():
    """What is written by hand names files that hold what it says."""
    listed = house.extensions(ROOT)
    assert listed
    assert not [text for text in listed.values() if text.startswith("not as listed")], listed


@pytest.mark.thorough
def test_the_report_of_this_checkout():
    lines = list(house.report(ROOT, quick=True))
    assert "| circles of files | 0 |" in lines
    assert "| circles of folders | 0 |" in lines
    assert "| parameters `config: Any` | 0 |" in lines
