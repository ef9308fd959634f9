"""Every key of both families, from JSON and from the command line, with values that mistakes and
strangers give: each is refused in a short paragraph, or taken in the type and range of its key.
"""

import json
import math

import pytest

import moe.config
import vitattn.config
from configs.common import load
from trainlib import keys
from trainlib.config import assign, flat, flatten, from_schema, override
from trainlib.errors import ConfigError
from trainlib.untrusted_files import parse_json

KINDS = ("none", "augmented", "local", "halo")
SCHEMAS = {
    "moe": moe.config.schema(),
    **{f"resnet {kind}": vitattn.config.schema({"model.attention.kind": kind}) for kind in KINDS},
    **{
        name: vitattn.config.schema({"model.name": name, "model.attention.kind": "augmented"})
        for name in ("wide_resnet", "mnasnet")
    },
}
# (schema, key); keys that models share are tried in one of them.
KEYS = [
    *{
        (family == "moe", name): (family, name)
        for family, schema in SCHEMAS.items()
        for name in schema
    }.values()
]

DEEP = "[" * 500 + "]" * 500
VALUES = [
    *("null", "true", "[]", "[[]]", DEEP, "[null]", "[[1, 2], [3]]", "{}", '{"a": 1}'),
    *("NaN", "Infinity", "-Infinity", "1e400", "-1", "0", "0.5", "-0.0", "1" + 30 * "0"),
    *("1" + 400 * "0", '""', json.dumps("x" * 100_000), '"\\u001b[31m"', '"a\\u0000b"'),
    *('["\\u0007"]', "[NaN, 1, 1]", '"(a+"', '[["(", 1]]', '"true"', '"7"'),
]
WORDS = [
    *("", "null", "None", "true", "[]", "((),)", "(" * 500 + ")" * 500, "(1,", "(None,)", "{}"),
    *("nan", "inf", "-inf", "1e400", "-1", "0", "0.5", "1" + 30 * "0", "9" * 5000, "-" * 5000),
    *("x" * 100_000, "\x1b[31m", "a\x00b", "nan,1,1", "\udcff", "(((1)))", "1,,1", "('a',-1)"),
]


def plain(value) -> bool:
    """Whether a value is what a configuration holds: bounded, finite, printable."""
    if isinstance(value, tuple):
        return len(value) <= 10_000 and all(map(plain, value))
    if isinstance(value, str):
        return len(value) <= 4096 and value.isprintable()
    return isinstance(value, bool | int | float) and math.isfinite(value) and abs(value) < 1e39


@pytest.fixture(scope="module")
def configs():
    return {family: from_schema(schema) for family, schema in SCHEMAS.items()}


def outcome(config, schema, name, give) -> str:
    """The paragraph, or "" for a value that is taken; then it is one of the key's."""
    before = flatten(config)[name]
    try:
        give()
    except ConfigError as refused:
        text = str(refused)
        assert len(text) < 1000, text
        assert text.isprintable(), text
        assert name in text or "JSON" in text or "deep" in text, text
        return text
    taken = flatten(config)[name]
    assert plain(taken), taken
    assert keys.kind_of(schema[name]).take(taken) == taken
    assert isinstance(taken, type(before)) or name == "model.image_size"
    assign(config, {name: before}, "back")
    return ""


@pytest.mark.parametrize("family", SCHEMAS)
def test_every_default_is_in_its_range_and_every_range_is_declared(family):
    for name, entry in SCHEMAS[family].items():
        kind = keys.kind_of(entry)
        assert kind.take(entry[0]) == entry[0], name
        assert 0 < len(kind.words) < 300, name
        if isinstance(entry[0], int | str) and not isinstance(entry[0], bool):
            assert isinstance(entry, keys.Key), f"{name} declares no range"


@pytest.mark.sample(2)
@pytest.mark.parametrize("value", VALUES, ids=lambda v: v[:20])
def test_values_of_json_are_refused_or_in_range(configs, value):
    refused = 0
    for family, name in KEYS:
        nested = "".join(f'{{"{part}": ' for part in name.split("."))
        for document in (f'{{"{name}": {value}}}', nested + value + "}" * (name.count(".") + 1)):

            def give(document=document, family=family):
                found = parse_json(document.encode(), "x.json JSON", error=ConfigError)
                assign(configs[family], flat(found, "x.json"), "x.json")

            refused += outcome(configs[family], SCHEMAS[family], name, give) != ""
    # What no key takes; the others are text, switches or numbers somewhere.
    nobody = ("null", "[null]", "{", "NaN", "Inf", "-Inf", "1e4", '"\\', '["\\', "[NaN", "[[[")
    if value.startswith(nobody) or len(value) > 1000:
        assert refused == 2 * len(KEYS)
    assert refused > len(KEYS)


@pytest.mark.thorough
@pytest.mark.parametrize("words", WORDS, ids=lambda v: ascii(v[:20]))
def test_words_of_a_command_line_are_refused_or_in_range(configs, words):
    refused = [
        name
        for family, name in KEYS
        if outcome(
            configs[family],
            SCHEMAS[family],
            name,
            lambda family=family, name=name: override(configs[family], name, words, "command line"),
        )
    ]
    if any(letter in words for letter in "\x00\x1b\udcff") or len(words) > 10_000:
        assert len(refused) == len(KEYS)
    assert len(refused) > len(KEYS) / 3


def test_steps_and_epochs_do_not_both_say_how_long_a_run_is():
    with pytest.raises(ConfigError, match="Set one of them"):
        load.from_flags("configs/resnet50.py:digits", {"steps": "3", "epochs": "3"})
    config = load.from_flags("configs/resnet50.py:digits", {"epochs": "3"}).config
    assert config.epochs == 3
    again = load.overrides.apply(config, {"steps": "5"}, load.COMMAND_LINE, typed=False)
    assert (again.steps, again.epochs) == (5, 0)
