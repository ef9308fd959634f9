"""Users' type checkers read our annotations: the packages say that they are typed."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["trainlib", "moe", "vitattn"])
def test_a_package_is_marked_as_typed_in_the_wheel_too(package):
    assert (ROOT / package / "py.typed").is_file()
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "py.typed" in data["package-data"][package]
