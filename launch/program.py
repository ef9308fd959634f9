"""All commands under one name: `vitattn-moe COMMAND [ARGUMENTS]`.

A command is a module of `launch` and runs as `python -m launch.MODULE` does. `--help` imports
them, which takes no library that computes.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Sequence

import vitattn_moe
from launch import cli
from trainlib import commands
from trainlib.errors import ConfigError, nearest, open_streams, run_command, shown

COMMANDS = {  # command -> module of `launch`
    "train": "train",
    "evaluate": "evaluate",
    "predict": "predict",
    "prepare": "prepare",
    "export": "export",
    "import": "import_weights",
    "compile": "compile",
    "describe": "describe",
    "conformance": "conformance",
    "doctor": "doctor.__main__",
    "analyse": "analyse.__main__",
    "report": "report",
    "reproduce": "reproduce.__main__",
    "completion": "completion.__main__",
}


def main(program: str, argv: Sequence[str]) -> None:
    """Runs a command, or says which there are; ends the process with its exit code.

    Args:
      program: what was typed before the command, for messages: `vitattn-moe`.
      argv: the command and its arguments.
    """
    commands.started_as(program)
    command, *rest = argv or [""]
    if command == "help" and rest:  # `vitattn-moe help train`
        command, rest = rest[0], ["--help"]
    if command in COMMANDS:
        sys.argv = [program, *rest]
        runpy.run_module(f"launch.{COMMANDS[command]}", run_name="__main__", alter_sys=True)
        return
    open_streams()
    sys.exit(run_command(lambda: _answer(program, command)))


def parser_of(command: str) -> cli.Parser:
    """The argument parser of a command, which is not run."""
    return cli.parser_of(importlib.import_module(f"launch.{COMMANDS[command]}").main)


def _answer(program: str, word: str) -> int:
    if word in ("-h", "--help", "help"):
        print(usage(program))
    elif word in ("-V", "--version"):
        print(f"vitattn-moe {vitattn_moe.__version__}")
    elif not word:
        print(usage(program), file=sys.stderr)
        return ConfigError.exit_code
    elif word.startswith("-"):
        raise ConfigError(
            f"{program}: name a command before {shown(word.partition('=')[0], 60)}, such as "
            f"`{program} train`. Commands: {', '.join(COMMANDS)}. See `{program} --help`."
        )
    else:
        raise ConfigError(
            f"{program} has no command '{shown(word, 60)}'. {nearest(word, COMMANDS)}Commands: "
            f"{', '.join(COMMANDS)}. See `{program} --help`."
        )
    return 0


def usage(program: str) -> str:
    """The text of `--help`."""
    lines = [f"  {name:<12}{parser_of(name).description}" for name in COMMANDS]
    return "\n".join(
        (
            f"usage: {program} COMMAND [ARGUMENTS]",
            "",
            "Attention in vision models and sparse mixture-of-experts language models in JAX.",
            "",
            *lines,
            "",
            f"`{program} COMMAND --help` lists the arguments of one; --version prints the version.",
            "A first run, in minutes on two CPU cores, without a data set:",
            "",
            f"  {program} train --config=aa_resnet50:digits --workdir=runs/aa_resnet50_digits",
        )
    )
