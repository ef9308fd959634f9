"""What messages tell people to type, in each of the ways in which the program is started."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from trainlib import commands

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(commands.STARTED_AS, raising=False)


def test_a_checkout_is_told_of_modules():
    assert commands.name("train") == "python -m launch.train"
    assert commands.name("import") == "python -m launch.import_weights"
    assert commands.install("aot") == "pip install -c constraints.txt -e '.[aot]'"


def test_an_installed_package_is_told_of_its_program(monkeypatch):
    monkeypatch.setattr(commands, "in_checkout", lambda: False)
    assert commands.name("import") == "vitattn-moe import"
    assert commands.install("aot") == "pip install 'vitattn-moe[aot]'"
    assert commands.install() == "pip install 'vitattn-moe'"


def test_who_started_a_module_is_told_of_modules_wherever_it_lies(monkeypatch):
    monkeypatch.setattr(commands, "in_checkout", lambda: False)
    main = types.SimpleNamespace(__spec__=types.SimpleNamespace(name="launch.train"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert commands.name("evaluate") == "python -m launch.evaluate"


def test_what_was_typed_reaches_the_processes_of_a_run(monkeypatch):
    monkeypatch.setenv(commands.STARTED_AS, "")
    commands.started_as("python -m vitattn_moe")
    code = "from trainlib import commands; print(commands.name('predict'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "python -m vitattn_moe predict"
