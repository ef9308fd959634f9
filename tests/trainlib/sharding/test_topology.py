"""Devices that are not here: what is needed for them, and what is refused."""

from __future__ import annotations

import importlib.util
import os

import pytest

from trainlib.chips import target
from trainlib.errors import ConfigError
from trainlib.sharding import topology


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"\[aot\]"):
        topology.devices(target("v5e-4"))


def test_gpus_are_compiled_for_where_they_are():
    with pytest.raises(ConfigError, match="GPU"):
        topology.devices(target("gpu:h200x8"))


def test_standard_error_is_taken_and_given_back(capfd):
    with topology.captured_errors() as log:
        os.write(2, b"from the compiler\n")
    os.write(2, b"after\n")
    assert log == ["from the compiler\n"]
    assert capfd.readouterr().err == "after\n"
