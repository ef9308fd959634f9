"""What every command shares: flags, values of flags, and how a command starts and ends.

Nothing heavy is imported here before it is needed: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trainlib import commands, compile_cache, extension, paths
from trainlib.errors import (
    ConfigError,
    nearest,
    open_streams,
    paragraph,
    run_command,
    shown,
)
from trainlib.run.interrupt import leave_until_saving, leave_when_asked
from trainlib.step import heap

if TYPE_CHECKING:
    from ml_collections import ConfigDict

STEP_HELP = "which checkpoint: a number, or best (by checkpoint.best); default: the newest"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `ConfigError`s (exit 64), with the nearest flag."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. See `{self.prog} --help`.")


def command_parser(command: str, description: str) -> Parser:
    """The parser of a command such as `train` or `import`, with the flags of all commands."""
    return parser(commands.name(command), description)


def parser(prog: str, description: str) -> Parser:
    """The same for any other program; `prog` is what one types to start it."""
    result = Parser(prog=prog, description=description, allow_abbrev=False)
    result.add_argument("--debug", action="store_true", help="print tracebacks of expected errors")
    result.add_argument("--compile_cache", metavar="DIR|off", default="", help=compile_cache.HELP)
    result.add_argument(
        "--trust_code",
        metavar="MODULE,...",
        help="modules of your own that a configuration in JSON (that of a run, of an export) may "
        "import; without this it may import none",
    )
    return result


def add_path(parser: argparse.ArgumentParser, flag: str, **more: Any) -> None:
    """Adds a flag, or a positional argument, that takes a path; see `trainlib.paths.resolve`."""
    parser.add_argument(flag, type=functools.partial(paths.resolve, what=flag), **more)


def is_path(action: argparse.Action) -> bool:
    """Whether an argument was added by `add_path`."""
    return isinstance(action.type, functools.partial) and action.type.func is paths.resolve


class _ParserAlone(tuple):
    """Arguments of a command that is asked for its parser, and is not run."""


class _Found(Exception):
    def __init__(self, parser: Parser):
        self.parser = parser


def parser_of(main: Callable[[Sequence[str]], int | None]) -> Parser:
    """The argument parser that a command makes; the command itself is not run."""
    try:
        main(_ParserAlone())
    except _Found as found:
        return found.parser
    raise TypeError(f"{main.__module__} reads its arguments without cli.parse")


def parse(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits a command line into flags and `--config.KEY=VALUE` overrides.

    Raises:
      ConfigError: for a flag that does not exist (names the nearest) or an override without a
        value.
    """
    if isinstance(argv, _ParserAlone):
        raise _Found(parser)
    overrides, rest, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"--config.{key} needs a value: --config.{key}=VALUE.")
            value = words.pop(0)
        overrides[key] = value
    args, unknown = parser.parse_known_intermixed_args(rest)
    if getattr(args, "trust_code", None):
        extension.trust(*(module.strip() for module in args.trust_code.split(",")))
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        word = unknown[0].split("=")[0]
        raise ConfigError(
            f"{parser.prog} has no argument '{word}'. {nearest(word, flags)}Flags: "
            f"{', '.join(sorted(flags))}; configuration values are set by --config.KEY=VALUE."
        )
    return args, overrides


def leave_tpus_alone() -> None:
    """Where libtpu is only there to compile, JAX would look for a TPU in vain, with a page of
    warnings.
    """
    if importlib.util.find_spec("libtpu") and not has_accelerator():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def has_accelerator() -> bool:
    """Whether the system has a device that JAX may compute on."""
    devices = ("/dev/accel0", "/dev/vfio", "/dev/nvidia0", "/dev/kfd")
    return any(Path(device).exists() for device in devices)


def step(text: str) -> int | str:
    """The value of `--step`: a number, or "best"."""
    if text != "best" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is neither the number of a step nor 'best'")
    return text if text == "best" else int(text)


def chosen_step(given: int | str | None, config: ConfigDict, workdir: Path) -> int | None:
    """The number that `--step` means in a workdir; None is the newest.

    Raises:
      ConfigError: "best" of a run without `checkpoint.best`, or of an export.
      CheckpointError: "best", and no step was evaluated.
    """
    if not isinstance(given, str):
        return given
    from trainlib.formats import weight_source
    from trainlib.run.workdir import best_step

    if weight_source.is_export(workdir):
        raise weight_source.one_step(workdir)
    return best_step(config, workdir)


def seeds(text: str) -> int:
    """The value of `--seeds`: how many of each run."""
    if not text.isdecimal() or not 0 < int(text) <= 100:
        raise argparse.ArgumentTypeError(f"'{shown(text)}' is no number of seeds, 1 to 100")
    return int(text)


def part(text: str) -> tuple[int, int]:
    """The value of `--part`: "I/N" -> (I, N), a share of work that N processes or machines do.

    Raises:
      ConfigError: it is no such share.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--part={text} is not I/N with 0 <= I < N, for example --part=0/4.")
    return int(index), int(count)


def _refuse_windows() -> int:
    text = (
        "error: Windows itself is not supported: locks, signals and data workers need Linux or "
        "macOS. Install WSL2 (`wsl --install`), and this package within it."
    )
    print(paragraph(text), file=sys.stderr)
    return ConfigError.exit_code


def run(main: Callable[[Sequence[str]], int | None], *, saves: bool = False) -> None:
    """Entry point of a command: runs it, prints expected errors as a paragraph, exits.

    Args:
      main: the command.
      saves: whether it saves its work and resumes when it is run again, so that a signal ends it
        with 75 throughout.
    """
    if sys.platform == "win32":
        sys.exit(_refuse_windows())
    argv = sys.argv[1:]
    open_streams()
    (leave_until_saving if saves else leave_when_asked)()
    leave_tpus_alone()
    if not has_accelerator():
        heap.one_heap()
    # What a start imports and traces lives on: looking through all of it again and again for
    # garbage takes a fifth of a start, and as long again at the end of a short command. A training
    # collects as often as usual from its first step on.
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
    code = run_command(lambda: main(argv), debug="--debug" in argv)
    gc.freeze()
    sys.exit(code)
