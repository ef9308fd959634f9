"""Code of users in configurations: what is imported, what is refused, and who has to agree."""

import sys

import pytest

import configs
from trainlib import extension
from trainlib.config import to_json
from trainlib.errors import ConfigError

# Importing it leaves a trace, so that a test can tell whether it was.
MODULE = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
import optax
from moe.routing.policies import Policy, send_where

NUMBER = 7
FIRST = Policy(lambda choices: send_where(choices.gates[..., 1:] > 2, choices))

def signum(learning_rate, strength=1.0):
    return optax.sign_sgd(learning_rate)
"""
KEY = "optimizer.name"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A directory with the module `own_code` in it, which nobody has imported or trusted yet."""
    (tmp_path / "own_code.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(extension, "_trusted", set())
    monkeypatch.delitem(sys.modules, "own_code", raising=False)
    yield tmp_path
    sys.modules.pop("own_code", None)


def imported(folder) -> bool:
    return (folder / "imported").exists()


def refused(*words, call, **arguments) -> None:
    with pytest.raises(ConfigError) as caught:
        call(**arguments)
    for word in words:
        assert word in str(caught.value), caught.value


# ------------------------------------------------------------------------------------- load
def test_a_module_of_the_current_directory_is_found(own):
    assert extension.load("own_code:NUMBER", KEY) == 7


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("own_cod:NUMBER", ["no module 'own_cod'", "PYTHONPATH"]),
        ("own_code.inner:NUMBER", ["no module 'own_code.inner'"]),
        ("own_code:signun", ["has no 'signun'", "Did you mean 'signum'?"]),
        ("own_code:NUMBER", ["must be a str", "it is 7"]),
        ("own_code", ["MODULE:NAME"]),
        ("own_code:a.b", ["MODULE:NAME"]),
    ],
)
def test_what_cannot_be_loaded_is_explained(own, reference, words):
    refused(KEY, *words, call=extension.load, reference=reference, key=KEY, kind=str)


@pytest.mark.parametrize("line", ["1 / 0", "raise SystemExit(3)", "import no_such_package", "(("])
def test_a_module_that_stops_is_explained(own, line):
    (own / "own_code.py").write_text(f"\n\n{line}\n")
    words = ["'own_code' stops with", "own_code.py, line 3"]
    refused(*words, call=extension.load, reference="own_code:a", key=KEY)


def test_a_key_that_is_not_checked_loads_nothing(own):
    with pytest.raises(ValueError, match="not among the keys"):
        extension.load("own_code:NUMBER", "data.dir")
    assert not imported(own)


# ------------------------------------------------------------------------------------ trust
VALUES = {
    "optimizer.name": "own_code:signum",
    "model.attention.kind": "own_code:Config",
    "task": "own_code:task",
    "data.source": "module:own_code:KIND:some/path",
    "data.parts": (("pydoc", 1.0), ("module:own_code:KIND", 2.0)),
    "routing.second_policy": "own_code:FIRST",
    "routing.second_policy_eval": "own_code:FIRST",
    "writers.extra": "own_code:Writer",
}


@pytest.mark.parametrize("key", VALUES)
def test_code_in_json_needs_trust(own, key):
    given = {"values": {key: VALUES[key]}, "where": "config.json"}
    refused(key, "own_code", "--trust_code=own_code", call=extension.check, **given)
    extension.trust("own_code.inner", "own")
    refused("--trust_code", call=extension.check, **given)
    extension.trust("own_code")
    extension.check(**given)
    assert not imported(own)


def test_a_task_of_ones_own_among_others_needs_trust():
    values = {"data.source": "task:boolq, own_code:QUIZ"}
    refused("own_code:QUIZ", call=extension.check, values=values, where="config.json")


def test_a_package_is_trusted_with_its_modules(own):
    extension.trust("own_code")
    extension.check({"task": "own_code.inner:task"}, "config.json")


def test_values_without_code_need_none():
    plain = {"data.source": "folder:a:b", "optimizer.name": "lion", "data.dir": "C:data"}
    extension.check(plain | {"data.parts": (("text:own", 1.0),)}, "config.json")


@pytest.mark.parametrize("name", ["--x", "a b", "", "a:b"])
def test_only_modules_are_trusted(name):
    refused("no name of a module", call=lambda: extension.trust(name))


def test_a_saved_configuration_imports_nothing_by_itself(own):
    """Written by a person in Python, read from JSON by another process."""
    config = configs.load("reproduce_small", optimizer={"name": "own_code:signum"})
    (own / "config.json").write_text(to_json(config))
    extension._trusted.clear()
    refused("--trust_code=own_code", call=lambda: configs.load(own / "config.json"))
    assert not imported(own)
    extension.trust("own_code")
    assert configs.load(own / "config.json").optimizer.name == "own_code:signum"


def test_a_name_in_the_call_is_trust(own):
    values = {"routing.second_policy": "own_code:FIRST"}
    (own / "config.json").write_text(to_json(configs.load("st_moe_tiny", **values)))
    extension._trusted.clear()
    again = configs.load(own / "config.json", **values)
    assert again.routing.second_policy == "own_code:FIRST"


def test_loading_a_model_imports_nothing_by_itself(own):
    """A directory of someone else names code; the model is not looked at before that is settled."""
    import moe
    import vitattn

    for name, package in (("reproduce_small", vitattn), ("st_moe_tiny", moe)):
        config = configs.load(name, optimizer={"name": "own_code:signum"})
        (own / "config.json").write_text(to_json(config))
        extension._trusted.clear()
        refused("trust_code=['own_code']", call=package.load, directory=own)
    assert not imported(own)
