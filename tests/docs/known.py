"""What the code knows: every flag of every command, and every key that some configuration has."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from unittest import mock

from configs.common import load
from docs._ext import facts
from launch import cli, program
from tests.docs.pages import Command
from tests.launch.commands import ROOT
from trainlib import extension
from trainlib.config import unknown

SHELL = ("cat", "cd", "head", "ls", "mkdir")  # commands that a page may use without a marker


class Parsed(Exception):
    """Carries what a command read from its command line."""


@functools.cache
def all_keys() -> dict[str, tuple]:
    """Dotted name -> (default, meaning) of all keys of both families, whatever the model."""
    from vitattn.models import MODELS
    from vitattn.models.fields import choices

    found = dict(facts.schema_of("moe"))
    for model, (cls, *_) in MODELS.items():
        kinds = [f"{f}={kind}" for f, options in choices(cls).items() for kind in options]
        for kind in ("", *kinds):
            found |= facts.schema_of("vitattn", f"{model}.{kind}".rstrip("."))
    return found


@functools.cache
def flags(command: str) -> frozenset[str]:
    """The flags of a command."""
    actions = program.parser_of(command)._actions
    return frozenset(flag for action in actions for flag in action.option_strings)


@functools.cache
def every_flag() -> frozenset[str]:
    """The flags of all commands."""
    return frozenset().union(*map(flags, program.COMMANDS))


def module_of(command: Command):
    """The module of a command of this package."""
    assert command.name in program.COMMANDS, f"there is no command '{command.name}'"
    module = importlib.import_module(f"launch.{program.COMMANDS[command.name]}")
    package = hasattr(module, "__path__")
    return importlib.import_module(f"{module.__name__}.__main__") if package else module


def check(command: Command, *, runs: bool) -> None:
    """Raises what the real parsers and schemas object to; nothing is run.

    Args:
      command: what stands on a page.
      runs: whether it is run as well; its page may then make the configuration that it reads.
    """
    if command.kind == "launch":
        _check_launch(command, runs)
    elif command.kind == "make":
        _check_make(command)
    elif command.kind == "benchmark":
        module = command.name.replace(".", "/")
        places = [f"{module}.py", f"{module}/__main__.py"]
        path = next((p for name in places if (p := ROOT / "benchmarks" / name).is_file()), None)
        assert path is not None, f"there is no {places[0]} in benchmarks"
        text = path.read_text()
        if "sweep.add_flags(" in text:  # those that all comparisons of many runs have
            text += (ROOT / "benchmarks/harness/sweep.py").read_text()
        for word in command.arguments:
            flag = word.partition("=")[0]
            assert f'"{flag}"' in text, f"{command.name} has no flag {flag}"


def _check_launch(command: Command, runs: bool) -> None:
    module = module_of(command)
    real = cli.parse

    def parse(parser, argv):
        raise Parsed(real(parser, argv))

    with mock.patch.object(cli, "parse", parse):
        try:
            module.main(list(command.arguments))
        except Parsed as parsed:
            args, overrides = parsed.args[0]
        except SystemExit:  # --help
            return
    config = getattr(args, "config", None)
    shipped = config and Path(config.partition(":")[0]).stem in {p.stem for p in load.shipped()}
    # A page that is run may make the module of a task or layer that it names.
    makes = runs and any(extension.is_reference(value) for value in overrides.values())
    if (shipped and not makes) or (config and not runs):
        # The run that a page starts from is not here, and some configurations take its model.
        here = {key: value for key, value in overrides.items() if key != "init_from"}
        load.from_flags(str(config), here)
        return
    for key in overrides:
        if key not in all_keys():
            raise unknown(all_keys(), key, "the page")


def _check_make(command: Command) -> None:
    text = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{command.name}:", text, re.M), f"there is no target '{command.name}'"
    for word in command.arguments:
        variable = word.partition("=")[0]
        assert variable in re.findall(r"\$\((?:if \$\(|or \$\()?(\w+)", text), f"no {variable}"
