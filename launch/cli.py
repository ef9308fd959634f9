"""What every command shares: flags, loading a configuration, overrides, and where each value came
from.

Nothing heavy is imported here before it is needed: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trainlib import paths
from trainlib.errors import (
    ConfigError,
    UserError,
    nearest,
    open_streams,
    run_command,
    shown,
)
from trainlib.run.interrupt import leave_until_saving, leave_when_asked
from trainlib.untrusted_files import what_is

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FAMILIES = ("vitattn", "moe")
COMMAND_LINE = "command line"
SWITCHES = ("model.name",)  # with `*.kind`, what decides which other keys exist
CONFIG_HELP = (
    "a file and variant, configs/aa_resnet50.py[:digits], or the config.json of an earlier run; "
    "single values by --config.KEY=VALUE"
)

STEP_HELP = "which checkpoint: a number, or best (by checkpoint.best); default: the newest"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `ConfigError`s (exit 64), with the nearest flag."""

    def error(self, message: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise ConfigError(f"{self.prog}: {message}. See `python -m {self.prog} --help`.")


def parser(prog: str, description: str) -> Parser:
    """A parser with the flags that all commands have."""
    made = Parser(prog=prog, description=description, allow_abbrev=False)
    made.add_argument("--debug", action="store_true", help="print tracebacks of expected errors")
    return made


def add_path(made: argparse.ArgumentParser, flag: str, **more: Any) -> None:
    """Adds a flag, or a positional argument, that takes a path; see `trainlib.paths.resolve`."""
    made.add_argument(flag, type=functools.partial(paths.resolve, what=flag), **more)


def parse(made: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits a command line into flags and `--config.KEY=VALUE` overrides.

    Raises:
      ConfigError: for a flag that does not exist (names the nearest) or an override without a
        value.
    """
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
    args, unknown = made.parse_known_intermixed_args(rest)
    if unknown:
        flags = [flag for action in made._actions for flag in action.option_strings]
        word = unknown[0].split("=")[0]
        raise ConfigError(
            f"{made.prog} has no argument '{word}'. {nearest(word, flags)}Flags: "
            f"{', '.join(sorted(flags))}; configuration values are set by --config.KEY=VALUE."
        )
    return args, overrides


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A resolved configuration and, for every key, where its value was set."""

    config: ConfigDict
    origin: dict[str, str]


def family_module(config: ConfigDict, name: str) -> ModuleType:
    """Imports `vitattn.NAME` or the like for the family of a configuration."""
    return importlib.import_module(f"{config.family}.{name}")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What goes wrong in the code of a configuration is said in a paragraph."""
    from trainlib.keys import brief

    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f" in line {line}" if line else ""
        words = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(
            f"The configuration {shown(path)} stops{place} with {type(error).__name__}: "
            f"{shown(words) or brief(error)}. --debug prints the traceback."
        ) from error


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _explained(path):
        spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(
            f"{shown(path)} is not a configuration: it has no function get_config(variant)."
        )
    return module


def shipped() -> list[Path]:
    """The configuration files of this package."""
    import configs

    folder = Path(configs.__path__[0])
    return sorted(p for p in folder.glob("*.py") if p.stem not in ("__init__", "common"))


def _find(name: str) -> Path:
    path = paths.resolve(name, "--config")
    if path.suffix not in (".py", ""):
        raise ConfigError(
            f"--config={shown(name)}: a configuration is {CONFIG_HELP}; '{shown(path.suffix, 40)}' "
            "is the suffix of neither."
        )
    if path.is_file():
        return path
    by_stem = {p.stem: p for p in shipped()}
    if path.stem in by_stem and path.parent.name in ("", "configs"):
        return by_stem[path.stem]
    what = f"it is {what_is(name)}" if os.path.lexists(name) else "there is no such file"
    raise ConfigError(
        f"--config={shown(name)}: {what}. {nearest(path.stem, by_stem)}"
        f"Shipped: {', '.join(f'configs/{stem}.py' for stem in by_stem)}."
    )


def _defaults(values: Mapping[str, Any], source: str) -> ConfigDict:
    """The defaults of all keys that exist for these values (model and kinds decide)."""
    from trainlib.config import from_schema
    from trainlib.keys import choice, fit

    if "family" not in values:
        raise ConfigError(f"{shown(source)} has no key 'family': {' or '.join(FAMILIES)}.")
    family = fit("family", values["family"], choice(*FAMILIES), source)
    return from_schema(importlib.import_module(f"{family}.config").schema(values))


def _from_values(values: Mapping[str, Any], source: str) -> Loaded:
    """The configuration of values from JSON; the others have their defaults."""
    from trainlib.config import assign, flatten

    config = _defaults(values, source)
    assign(config, values, source)
    return Loaded(config, dict.fromkeys(flatten(config), source))


def _made(module: ModuleType, path: Path, variant: str) -> dict[str, Any]:
    """The values that `get_config` of a file gives, of any type."""
    from ml_collections import ConfigDict

    from trainlib.config import flat, flatten

    with _explained(path):
        made = module.get_config(variant)
        if isinstance(made, ConfigDict):
            return flatten(made)
    if isinstance(made, Mapping):
        return flat(made, shown(path))
    hint = " End it with `return config`." if made is None else ""
    raise ConfigError(
        f"get_config of {shown(path)} returns {type(made).__name__}, not a configuration.{hint}"
    )


def _from_python(text: str) -> Loaded:
    from trainlib.config import assign, flatten

    name, _, variant = text.partition(":")
    path = _find(name)
    module = _load_file(path)
    values = _made(module, path, variant)
    plain = values
    if variant:
        with contextlib.suppress(UserError):  # a file may have nothing but variants
            plain = _made(module, path, "")
    config = _defaults(values, name)
    defaults = flatten(config)
    assign(config, values, text)
    origin = {}
    for key, value in flatten(config).items():
        if key in values and value != plain.get(key, defaults[key]):
            origin[key] = f"{path.name}, variant {variant}"
        else:
            origin[key] = path.name if value != defaults[key] else "default"
    return Loaded(config, origin)


def _switched(config: ConfigDict, key: str, overrides: Mapping[str, str]) -> ConfigDict:
    """Sets a key that decides which other keys exist; those that both have keep their values, but
    for those that are set as well.
    """
    from trainlib.config import flatten, override

    switched = _defaults(flatten(config) | {key: overrides[key]}, COMMAND_LINE)
    known = flatten(switched)
    for old, kept in flatten(config).items():
        if old not in overrides and old in known and kept != known[old]:
            override(switched, old, kept, COMMAND_LINE, typed=True)
    override(switched, key, overrides[key], COMMAND_LINE)
    return switched


def load(text: str | None, overrides: dict[str, str]) -> Loaded:
    """Loads `--config`, applies overrides, and says where each value was set.

    Args:
      text: `FILE.py[:variant]` or `FILE.json`.
      overrides: dotted key -> text from the command line.

    Raises:
      ConfigError: no such file, variant or key, a value that its key does not take, or a file that
        makes no configuration.
    """
    if not text:
        raise ConfigError(f"--config is missing: {CONFIG_HELP}.")
    from trainlib.config import read_json

    place = paths.resolve(text, "--config")
    if place.suffix == ".json":
        return _resolved(_from_values(read_json(place), text), overrides)
    return _resolved(_from_python(text), overrides)


def _resolved(loaded: Loaded, overrides: Mapping[str, str]) -> Loaded:
    from trainlib.config import flatten, override

    config, origin = loaded.config, dict(loaded.origin)
    for key in sorted(overrides, key=lambda key: not key.endswith((".kind", ".name"))):
        if key in SWITCHES or key.endswith(".kind"):
            config = _switched(config, key, overrides)
        else:
            override(config, key, overrides[key], COMMAND_LINE)
        origin[key] = COMMAND_LINE
    paths.check(flatten(config))
    return Loaded(config, {key: origin.get(key, "default") for key in flatten(config)})


def leave_tpus_alone() -> None:
    """Where libtpu is only there to compile, JAX would look for a TPU in vain, with a page of
    warnings.
    """
    places = ("/dev/accel0", "/dev/vfio", "/dev/nvidia0", "/dev/kfd")
    if importlib.util.find_spec("libtpu") and not any(Path(place).exists() for place in places):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


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
    from trainlib.formats import weight_source as weights
    from trainlib.run import run

    if weights.is_export(workdir):
        raise weights.one_step(workdir)
    return run.best_step(config, workdir)


def part(text: str) -> tuple[int, int]:
    """The value of `--part`: "I/N" -> (I, N), a share of work that N processes or machines do.

    Raises:
      ConfigError: it is no such share.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--part={text} is not I/N with 0 <= I < N, for example --part=0/4.")
    return int(index), int(count)


def run(main: Callable[[Sequence[str]], int | None], *, saves: bool = False) -> None:
    """Entry point of a command: runs it, prints expected errors as a paragraph, exits.

    Args:
      main: the command.
      saves: whether its work is saved and the same command goes on, so that a signal ends it with
        75 throughout.
    """
    argv = sys.argv[1:]
    open_streams()
    (leave_until_saving if saves else leave_when_asked)()
    leave_tpus_alone()
    sys.exit(run_command(lambda: main(argv), debug="--debug" in argv))


def read_workdir_config(workdir: Path, overrides: dict[str, str]) -> ConfigDict:
    """The configuration that a run saved beside its checkpoints."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"--workdir={workdir} holds no run: there is no config.json in it. Give the directory "
            "that was the --workdir of `python -m launch.train`."
        )
    from trainlib.config import read_json

    values = read_json(path, follow=False)
    if "family" not in values:
        raise ConfigError(
            f"--workdir={workdir} holds no run: its config.json has no key 'family', so that it is "
            "of another program. Give the --workdir of a training, or an export in our own names "
            "(`python -m launch.export --names=own`)."
        )
    return _resolved(_from_values(values, str(path)), overrides).config
