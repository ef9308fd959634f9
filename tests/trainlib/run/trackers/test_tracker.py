"""Finding a user's tracker class, and what is said where there is none."""

import sys

import pytest

from trainlib.errors import ConfigError
from trainlib.run.trackers.tracker import classes, reason

GOOD = """
class Mine:
    def __init__(self, workdir, config): ...
    def write(self, step, metrics): ...
    def close(self): ...

class Half:
    def write(self, step, metrics): ...

number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, which is on no path of modules; returns a function that fills it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = set(sys.modules)
    yield lambda name, text: (tmp_path / f"{name}.py").write_text(text)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_classes_of_files_in_the_current_directory(here):
    here("a_tracker", GOOD)
    here("another_tracker", GOOD)
    found = classes("a_tracker:Mine, another_tracker:Mine,")
    assert list(found) == ["a_tracker:Mine", "another_tracker:Mine"]
    assert [cls.__module__ for cls in found.values()] == ["a_tracker", "another_tracker"]
    assert classes("") == {}


def test_a_file_does_not_take_the_place_of_an_installed_module(here):
    here("colorsys", "raise RuntimeError('the wrong one')")
    sys.modules.pop("colorsys", None)
    with pytest.raises(ConfigError, match="the module colorsys has no class Mine"):
        classes("colorsys:Mine")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("wandb", "does not name a class. Write module:Class"),
        ("a b:C", "does not name a class"),
        ("../evil:C", "does not name a class"),
        ("missing_tracker:C", "there is no module missing_tracker, neither in"),
        ("good_tracker:Mime", "has no class Mime. Did you mean 'Mine'?"),
        ("good_tracker:number", "has no class number"),
        ("good_tracker:Half", "has no method close"),
        ("needs_tracker:C", "ModuleNotFoundError: No module named 'not_there' .needs_tracker.py, "),
        ("breaks_tracker:C", "ZeroDivisionError: division by zero .breaks_tracker.py, line 2."),
        ("typo_tracker:C", "SyntaxError: .*typo_tracker.py, line 1."),
    ],
)
def test_what_is_wrong_is_said(here, value, words):
    here("good_tracker", GOOD)
    here("needs_tracker", "import not_there")
    here("breaks_tracker", "\n1 / 0")
    here("typo_tracker", "def f(:")
    with pytest.raises(ConfigError, match=words) as raised:
        classes(value)
    assert f"writers.extra={value}" in str(raised.value)


def test_an_error_of_others_steers_no_terminal():
    assert reason(RuntimeError("\x1b[2Jgone\n")) == "RuntimeError: \\x1b[2Jgone\\x0a"
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"
