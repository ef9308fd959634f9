"""`vitattn-moe`: commands under one name, as a user types them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitattn_moe
from launch import program
from trainlib import commands

ROOT = Path(__file__).resolve().parents[2]


# In one process a module of a command may have been imported by another test.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@pytest.fixture
def typed(monkeypatch, capsys):
    """(exit code, standard output, standard error) of a command line, in this process."""
    monkeypatch.setenv(commands.STARTED_AS, "")  # put back after the test
    monkeypatch.setattr(sys, "argv", ["vitattn-moe"])

    def run(*words):
        with pytest.raises(SystemExit) as left:
            program.main("vitattn-moe", words)
        out, error = capsys.readouterr()
        return left.value.code, out, error

    return run


def test_help_and_version(typed):
    code, out, _ = typed("--help")
    assert code == 0
    for name in program.COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].+\.$", out, re.M), name
    assert max(map(len, out.splitlines())) <= 100
    assert typed("--version")[1] == f"vitattn-moe {vitattn_moe.__version__}\n"
    code, out, error = typed()
    assert (code, out) == (64, "")
    assert error.startswith("usage: vitattn-moe COMMAND")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("tran", "'train'"),
        ("import_weights", "'import'"),
        ("Describe", "'describe'"),
        ("--workdir=x", "name a command before --workdir"),
        ("--verison", "name a command"),
        ("\x1b[2J", r"no command '\x1b[2J'"),
    ],
)
def test_a_mistake_is_answered_with_the_nearest(typed, word, hint):
    code, out, error = typed(word)
    assert (code, out) == (64, "")
    assert hint in " ".join(error.split())


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_command_runs_under_its_name(typed, name):
    code, out, _ = typed(name, "--help")
    assert code == 0
    assert out.startswith(f"usage: vitattn-moe {name} ")
    assert "launch." not in out
    assert typed("help", name)[1] == out


def test_messages_follow_the_way_it_was_started(typed, tmp_path):
    _, _, error = typed("evaluate", f"--workdir={tmp_path}")
    assert "the --workdir of `vitattn-moe train`" in " ".join(error.split())
    code, _, error = typed("export")
    assert code == 64
    assert "vitattn-moe export: --workdir is missing. See `vitattn-moe export --help`." in " ".join(
        error.split()
    )


def test_as_a_module_and_without_anything_heavy():
    """What `--help` loads decides its time; a list of modules can be asserted, a time cannot."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['vitattn_moe', '--help']\n"
        "try:\n"
        "    runpy.run_module('vitattn_moe', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0, done.code\n"
        "heavy = ('jax', 'flax', 'numpy', 'tensorflow', 'grain', 'orbax')\n"
        "sys.exit([name for name in heavy if name in sys.modules] or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "python -m vitattn_moe train --config=" in done.stdout
