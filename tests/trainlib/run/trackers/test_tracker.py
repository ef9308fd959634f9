"""Finding a user's tracker class, and what is said where there is none."""

import sys

import pytest

from trainlib import extension
from trainlib.errors import ConfigError
from trainlib.run.trackers.tracker import classes, reason

GOOD = """
class Mine:
    def __init__(self, workdir, config): ...
    def write(self, step, metrics): ...
    def close(self): ...

class Other(Mine): ...

class Half:
    def write(self, step, metrics): ...

number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, which is on no path of modules, with a module in it."""
    (tmp_path / "good_tracker.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    sys.modules.pop("good_tracker", None)


def test_classes_of_files_in_the_current_directory(here):
    found = classes("good_tracker:Mine, good_tracker:Other,")
    assert list(found) == ["good_tracker:Mine", "good_tracker:Other"]
    assert [cls.__name__ for cls in found.values()] == ["Mine", "Other"]
    assert classes("") == {}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("wandb", "writers.extra='wandb' is not MODULE:NAME"),
        ("good_tracker:Mime", "has no 'Mime'. Did you mean 'Mine'?"),
        ("good_tracker:number", "must be a class, and it is 3"),
        ("good_tracker:Half", "writers.extra=good_tracker:Half: the class has no method close"),
        ("good_tracker:Mine,good_tracker:Half", "good_tracker:Half: the class has no method"),
    ],
)
def test_what_is_wrong_is_said(here, value, words):
    with pytest.raises(ConfigError, match=words):
        classes(value)


def test_every_class_of_a_list_in_json_has_to_be_trusted(monkeypatch):
    """Otherwise the second would come in behind the first."""
    monkeypatch.setattr(extension, "_trusted", set())
    with pytest.raises(ConfigError, match="'other_tracker:B', and a file of values may not"):
        extension.check({"writers.extra": "other_tracker:B"}, "config.json")
    extension.trust("first_tracker")
    with pytest.raises(ConfigError, match="'other_tracker:B', and a file of values may not"):
        extension.check({"writers.extra": "first_tracker:A, other_tracker:B"}, "config.json")


def test_an_error_of_others_steers_no_terminal():
    assert reason(RuntimeError("\x1b[2Jgone\n")) == "RuntimeError: \\x1b[2Jgone\\x0a"
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"
