"""Finds and loads a configuration, sets single keys, and says where each value came from.

Commands call `from_flags` and `of_workdir`, Python callers `configs.load`. Nothing heavy is
imported before a configuration is read, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from configs.common import overrides
from trainlib import commands, extension, paths
from trainlib.errors import ConfigError, UserError, nearest, paragraph, shown
from trainlib.untrusted_files import what_is

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FOLDER = Path(__file__).resolve().parents[1]  # of the shipped files
COMMAND_LINE = "command line"
CALL = "configs.load"
CONFIG_HELP = (
    "a shipped configuration and variant, aa_resnet50[:digits] or configs/aa_resnet50.py[:digits]; "
    "a file of yours, DIR/mine.py[:VARIANT]; or the config.json of an earlier run; single values "
    "by --config.KEY=VALUE"
)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A resolved configuration and, for every key, where its value was set."""

    config: ConfigDict
    origin: dict[str, str]


# ---------------------------------------------------------------------------------- for callers
def from_flags(text: str | None, flags: Mapping[str, str]) -> Loaded:
    """Loads `--config`, sets single keys, and says where each value was set.

    Args:
      text: `FILE.py[:variant]` or `FILE.json`.
      flags: dotted key -> text, of `--config.KEY=VALUE`.

    Raises:
      ConfigError: no such file, variant or key, a value that its key does not take, or a file that
        makes no configuration.
    """
    if not text:
        raise ConfigError(f"--config is missing: {CONFIG_HELP}.")
    extension.trust_values(flags)
    return _like_its_start(_with_values(_loaded(text), flags, COMMAND_LINE), text, flags)


def from_python(name: str, values: Mapping[str, Any]) -> ConfigDict:
    """The same for a caller in Python, whose values are typed; see `configs.load`."""
    from trainlib.config import flat

    given = flat(values, CALL)
    extension.trust_values(given)
    return _like_its_start(_with_values(_loaded(name), given, CALL), name, given).config


def of_workdir(workdir: Path, flags: Mapping[str, str]) -> ConfigDict:
    """The configuration that a run saved beside its checkpoints, with single keys set.

    Raises:
      ConfigError: there is none, it is of another program, or a flag does not fit.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"--workdir={workdir} holds no run: there is no config.json in it. Give the directory "
            f"that was the --workdir of `{commands.name('train')}`."
        )
    from trainlib.config import read_json

    values = read_json(path, follow=False)
    if "family" not in values:
        raise ConfigError(
            f"--workdir={workdir} holds no run: its config.json has no key 'family', so that it is "
            "of another program. Give the --workdir of a training, or an export in our own names "
            f"(`{commands.name('export')} --names=own`)."
        )
    values.pop("writers.extra", None)  # code that only training runs, and that is not asked of here
    extension.trust_values(flags)
    return _with_values(_from_values(values, str(path)), flags, COMMAND_LINE).config


def shipped() -> list[Path]:
    """The configuration files of this package: every Python file beside `configs/__init__.py`."""
    return sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")


def _with_values(loaded: Loaded, values: Mapping[str, Any], where: str) -> Loaded:
    from trainlib.config import flatten, mark_origin, mark_together, set_together

    of_file = set_together(loaded.config)
    config = overrides.apply(loaded.config, values, where, typed=where != COMMAND_LINE)
    mark_together(config, of_file | set(values))
    paths.check(flatten(config))
    known = loaded.origin | dict.fromkeys(values, where)
    origin = {key: known.get(key, "default") for key in flatten(config)}
    mark_origin(config, origin)
    return Loaded(config, origin)


def _like_its_start(loaded: Loaded, text: str, values: Mapping[str, Any]) -> Loaded:
    """The same with the model of the run that it starts from, where it asks for that. A JSON file
    has the model already.
    """
    config, origin = loaded.config, dict(loaded.origin)
    if config.family != "moe" or not config.init_from or Path(text).suffix == ".json":
        return loaded
    from configs.common import like_start
    from trainlib.config import mark_origin

    taken = like_start.settle(config, values.keys())
    origin |= dict.fromkeys(taken, "init_from")
    mark_origin(config, origin)
    return Loaded(config, origin)


# ------------------------------------------------------------------------------------- find
def _find(name: str) -> Path:
    path = paths.resolve(name, "--config")
    if path.suffix not in (".py", ""):
        raise ConfigError(
            f"--config={shown(name)}: a configuration is {CONFIG_HELP}; '{shown(path.suffix, 40)}' "
            "is the suffix of neither."
        )
    by_stem = {p.stem: p for p in shipped()}
    own = by_stem.get(path.stem) if path.parent in (Path(), Path("configs")) else None
    if path.suffix == ".py" and path.is_file():
        if own is not None and _differ(path, own):
            _note(
                f"{shown(path)} of this directory is read, not the configuration of that name "
                f"that is shipped; --config={path.stem} reads the latter."
            )
        return path
    if own is not None:
        for other in _beside(path):
            if other.is_file() and _differ(other, own):
                _note(
                    f"--config={shown(name)} is the shipped configuration, not {other} of this "
                    f"directory; --config={other} reads the latter."
                )
        return own
    what = f"it is {what_is(name)}" if os.path.lexists(name) else "there is no such file"
    meant = [other for other in _beside(path) if other.is_file()]
    hint = f"Did you mean {shown(meant[0])}? " if meant else nearest(path.stem, by_stem)
    raise ConfigError(f"--config={shown(name)}: {what}. {hint}Shipped: {', '.join(by_stem)}.")


def _beside(path: Path) -> tuple[Path, Path]:
    """Files of the current directory that a bare name may mean."""
    return Path(f"{path.stem}.py"), Path("configs", f"{path.stem}.py")


def _differ(one: Path, other: Path) -> bool:
    return not one.samefile(other) and one.read_bytes() != other.read_bytes()


def _note(text: str) -> None:
    print(paragraph(f"note: {text}"), file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------- load
def _loaded(text: str) -> Loaded:
    from trainlib.config import read_json

    path = paths.resolve(text, "--config")
    if path.suffix == ".json":
        return _from_values(read_json(path), text)
    return _from_file(text)


def _from_values(values: Mapping[str, Any], source: str) -> Loaded:
    """The configuration of values from JSON; keys that it does not give have their defaults.

    Raises:
      ConfigError: the values name code that nobody trusts, or do not fit their keys.
    """
    from trainlib.config import assign, flatten

    extension.check(values, source)
    config = overrides.defaults(values, source)
    assign(config, values, source)
    return Loaded(config, dict.fromkeys(flatten(config), source))


def _from_file(text: str) -> Loaded:
    from trainlib.config import assign, flatten, mark_together

    name, _, variant = text.partition(":")
    path = _find(name)
    module = load_module(path)
    values = _values_of(module, path, variant)
    plain = values
    if variant:
        with contextlib.suppress(UserError):  # a file may have nothing but variants
            plain = _values_of(module, path, "")
    config = overrides.defaults(values, name)
    defaults = flatten(config)
    assign(config, values, text)
    own = {key for key, value in values.items() if value != defaults.get(key)}
    if "epochs" in own and "steps" not in own:
        # Its warm-up was not chosen for the default of `steps`.
        mark_together(config, own)
    origin = {}
    for key, value in flatten(config).items():
        if key in values and value != plain.get(key, defaults[key]):
            origin[key] = f"{path.name}, variant {variant}"
        else:
            origin[key] = path.name if value != defaults[key] else "default"
    return Loaded(config, origin)


def load_module(path: Path) -> ModuleType:
    """Runs a configuration file; its `get_config(variant)` is what it is for.

    Raises:
      ConfigError: it stops with an error, or has no such function.
    """
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


def _values_of(module: ModuleType, path: Path, variant: str) -> dict[str, Any]:
    """The values that `get_config` of a file gives, of any type."""
    from ml_collections import ConfigDict

    from trainlib.config import flat, flatten

    with _explained(path):
        result = module.get_config(variant)
        if isinstance(result, ConfigDict):
            return flatten(result)
    if isinstance(result, Mapping):
        return flat(result, shown(path))
    hint = " End it with `return config`." if result is None else ""
    raise ConfigError(
        f"get_config of {shown(path)} returns {type(result).__name__}, not a configuration.{hint}"
    )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Words an error in the code of a configuration as a paragraph, with the file and line."""
    from trainlib.keys import brief

    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f" in line {line}" if line else ""
        words = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(
            f"The configuration {shown(path)} stops{where} with {type(error).__name__}: "
            f"{shown(words) or brief(error)}. --debug prints the traceback."
        ) from error
