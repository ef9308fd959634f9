"""Schemas, overrides and JSON: every value keeps its type, every mistake names the nearest key."""

import dataclasses
import json

import pytest

from trainlib import config as config_lib
from trainlib.errors import ConfigError

SCHEMA = {
    "steps": (100, "steps"),
    "name": ("", "name"),
    "optimizer.rate": (0.1, "rate"),
    "optimizer.nesterov": (False, "form"),
    "schedule.boundaries": ((), "steps"),
    "optimizer.frozen": (("a",), "patterns"),
}


@pytest.fixture
def config():
    return config_lib.from_schema(SCHEMA)


def test_a_schema_becomes_a_locked_configuration(config):
    assert config_lib.flatten(config) == {key: default for key, (default, _) in SCHEMA.items()}
    with pytest.raises(AttributeError, match="steps"):
        config.step = 3


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "1_000", 1000),
        ("optimizer.rate", "1e-3", 1e-3),
        ("optimizer.rate", "2", 2.0),
        ("optimizer.nesterov", "True", True),
        ("optimizer.nesterov", "0", False),
        ("schedule.boundaries", "10,20", (10, 20)),
        ("schedule.boundaries", "(10, 20)", (10, 20)),
        ("schedule.boundaries", "10", (10,)),
        ("schedule.boundaries", "", ()),
        ("optimizer.frozen", r"stem,conv2_x\.", ("stem", r"conv2_x\.")),
        ("name", "7", "7"),
    ],
)
def test_overrides_take_the_type_of_the_key(config, key, text, value):
    config_lib.override(config, key, text, "command line")
    found = config_lib.flatten(config)[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("stepz", "1", ["'stepz'", "Did you mean 'steps'"]),
        ("optimizer.rat", "1", ["Did you mean 'optimizer.rate'"]),
        ("optimizer", "1", ["section", "optimizer.rate"]),
        ("steps", "1.5", ["a whole number", "100"]),
        ("optimizer.rate", "fast", ["a finite number", "0.1"]),
        ("optimizer.nesterov", "maybe", ["true or false"]),
        ("schedule.boundaries", "(1,", ["a list"]),
    ],
)
def test_mistakes_are_explained(config, key, text, words):
    with pytest.raises(ConfigError) as caught:
        config_lib.override(config, key, text, "command line")
    for word in ("command line", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("steps", True), ("steps", 1.5), ("name", 3)])
def test_values_of_another_type_are_refused_too(config, key, value):
    with pytest.raises(ConfigError):
        config_lib.override(config, key, value, "run.json")


def test_json_goes_there_and_back(config, tmp_path):
    config_lib.override(config, "schedule.boundaries", "10,20", "test")
    path = tmp_path / "run.json"
    path.write_text(config_lib.to_json(config))
    again = config_lib.from_schema(SCHEMA)
    for key, value in config_lib.read_json(path).items():
        config_lib.override(again, key, value, "run.json")
    assert config_lib.flatten(again) == config_lib.flatten(config)
    assert not config_lib.differences(json.loads(path.read_text()), config_lib.flatten(again))
    path.write_text(json.dumps({"optimizer": {"rate": 0.5}}))
    assert config_lib.read_json(path) == {"optimizer.rate": 0.5}
    for broken in ("{", "[1]"):
        path.write_text(broken)
        with pytest.raises(ConfigError, match=r"run\.json"):
            config_lib.read_json(path)
    with pytest.raises(ConfigError, match=r"absent\.json cannot be read"):
        config_lib.read_json(tmp_path / "absent.json")


def test_the_meaning_of_a_field_comes_from_its_docstring():
    @dataclasses.dataclass
    class Options:
        """Options.

        Attributes:
          width: how wide,
            in pixels.
          inner: not a key.
        """

        width: int = 3
        inner: object = None

    assert config_lib.dataclass_schema(Options) == {"width": (3, "how wide, in pixels.")}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("steps", 0, "a whole number from 1"),
        ("eval_every", -1, "from 1, or 0 for only at the end"),
        ("batch_size", 100, "8 devices. Nearest: 96"),
        ("microbatches", 3, "8 devices x 3 microbatches. Nearest: 120"),
        ("eval_batch_size", 12, "Nearest: 16"),
    ],
)
def test_common_keys_are_checked(key, value, words):
    config = config_lib.from_schema(config_lib.COMMON)

    def check():
        config_lib.override(config, key, value, "test")
        config_lib.check_common(config, 8)

    with pytest.raises(ConfigError, match=words):
        check()
