"""Code of users in configurations: values of the form MODULE:NAME, and who may import them.

A layer, a routing policy, a data set, a task or an optimiser of one's own lies in one's own module,
and the configuration says where: `optimizer.name=my_rules:signum`. The value travels with the
checkpoints in config.json, so that evaluation and export find the same code in another process.

A config.json is data, and whoever hands one around could name any module. So a reference that comes
out of JSON is refused unless its module was named by the person who runs the command: in a value on
the command line, by `--trust_code=MODULE`, or by `trust` in Python. Configuration files in Python
are code already, and so are arguments of Python calls: those are imported without a question.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from trainlib.errors import ConfigError, UserError, nearest, shown
from trainlib.keys import Choice, Unfit, brief

T = TypeVar("T")

PREFIX = "module:"  # of a data set of one's own: data.source=module:MODULE:NAME[:ARGUMENT]
FORM = "MODULE:NAME"

# Every key whose values may name code. `load` refuses all others, so that none escapes `check`.
_KEY = re.compile(
    r"optimizer\.name|data\.source|data\.parts|task|model\.\w+\.kind|writers\.extra"
    r"|routing\.second_policy(_eval)?|evaluation\.metrics"
)
_REFERENCE = re.compile(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+")
_MOST = 200  # characters

_trusted: set[str] = set()


def is_reference(value: object) -> bool:
    """Whether a value has the form MODULE:NAME."""
    return isinstance(value, str) and len(value) <= _MOST and bool(_REFERENCE.fullmatch(value))


@dataclasses.dataclass(frozen=True)
class Named(Choice):
    """One word of a list, or MODULE:NAME of code of one's own."""

    @property
    def words(self) -> str:
        return f"{super().words}, or {FORM} of your own code"

    def take(self, value: Any) -> str | int:
        if is_reference(value):
            return str(value)
        if isinstance(value, str) and ":" in value:
            raise Unfit(f"what has a colon is read as {FORM}, two names of Python")
        return super().take(value)


def named(*options: str | int) -> Named:
    """One of these words, or MODULE:NAME."""
    return Named(options)


# ------------------------------------------------------------------------------------ trust
def trust(*modules: str) -> None:
    """Lets values of configurations in JSON name code of these modules, until the process ends.

    Args:
      *modules: dotted names, such as "my_layers"; modules inside them are trusted as well.

    Raises:
      ConfigError: one of them is no name of a module.
    """
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ConfigError(
                f"'{shown(module, 100)}' is no name of a module. Code is trusted by the dotted "
                "names of its modules, for example --trust_code=my_layers."
            )
    _trusted.update(modules)


def trust_values(values: Mapping[str, Any]) -> None:
    """Trusts the modules that values of a person (a command line, a Python call) name."""
    trust(*(reference.partition(":")[0] for _, reference in _references(values)))


def check(values: Mapping[str, Any], where: str) -> None:
    """Refuses values of a configuration in JSON that name code which nobody here has trusted.

    Args:
      values: dotted key -> value.
      where: the file that they come from.

    Raises:
      ConfigError: names the key, the module and the flag that lets it be imported.
    """
    for key, reference in _references(values):
        module = reference.partition(":")[0]
        parents = (module[:end] for end in _ends(module))
        if _trusted.isdisjoint(parents):
            raise ConfigError(
                f"{shown(where)}: {key} names code, '{shown(reference, 100)}', and a file of "
                f"values may not import code by itself. If you know the module '{module}' and "
                f"trust it, say so: --trust_code={module}, or trust_code=['{module}'] for `load` "
                "in Python."
            )


def _ends(module: str) -> Iterable[int]:
    """Where the name of a module and those of its parents end."""
    return [at for at, letter in enumerate(module + ".") if letter == "."]


def _references(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, MODULE:NAME) of every value that names code."""
    return [
        (key, reference)
        for key, value in values.items()
        if _KEY.fullmatch(key)
        for text in _texts(value)
        for reference in (_of_data(text) if key.startswith("data.") else names(key, text))
        if is_reference(reference)
    ]


def _texts(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for entry in value for text in _texts(entry)]
    return [value] if isinstance(value, str) else []


def names(key: str, text: str) -> list[str]:
    """Every MODULE:NAME of a value that may name several, separated by commas: those of
    `writers.extra` and `evaluation.metrics`, in which TASK= may stand before one.
    """
    parts = text.split(",") if key in ("writers.extra", "evaluation.metrics") else [text]
    if key == "evaluation.metrics":
        parts = [part.rpartition("=")[2] for part in parts]
    return [part.strip() for part in parts if part.strip()]


def _of_data(source: str) -> list[str]:
    """What names code in a data set: `module:my_data:SHAPES:large`, `task:boolq,my_tasks:QUIZ`."""
    kind, _, names = source.partition(":")
    if source.startswith(PREFIX):
        return [reference_of(source)]
    return [name.strip() for name in names.split(",")] if kind in ("task", "sample") else []


def reference_of(source: str) -> str:
    """MODULE:NAME of the data set `module:MODULE:NAME[:ARGUMENT]`."""
    return ":".join(source.removeprefix(PREFIX).split(":", 2)[:2])


def split(source: str) -> tuple[str, str]:
    """Name and argument of a data set: `folder:PATH` -> ("folder", "PATH"), and
    `module:MODULE:NAME:ARGUMENT` -> ("module:MODULE:NAME", "ARGUMENT"); without one it is "".
    """
    if source.startswith(PREFIX):
        name = PREFIX + reference_of(source)
        return name, source.removeprefix(name).removeprefix(":")
    name, _, argument = source.partition(":")
    return name, argument


# ------------------------------------------------------------------------------------- load
def load(reference: str, key: str, kind: type[T] | None = None, what: str = "") -> T | Any:
    """What MODULE:NAME stands for; the module is imported.

    The current directory is searched last, so that a module which lies there is found however the
    command was started.

    Args:
      reference: MODULE:NAME.
      key: the configuration key that it is the value of.
      kind: what it has to be an instance of; None: anything.
      what: that in words, for the error: "a vitattn.data.source.Kind".

    Raises:
      ConfigError: there is no such module or name, the module stops with an error while it is
        imported, or the name stands for something else.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key} is not among the keys that may name code (trainlib.extension).")
    value = _named(reference, key)
    if kind is not None and not isinstance(value, kind):
        raise misfit(reference, key, value, what or f"a {kind.__name__}")
    return value


def load_from_flag(reference: str, flag: str) -> Any:
    """What MODULE:NAME of a command line stands for: the person who types it asks for the import.

    Args:
      reference: MODULE:NAME.
      flag: that it is the value of, such as "--function".

    Raises:
      ConfigError: see `load`; or it cannot be called.
    """
    value = _named(reference, flag)
    if not callable(value):
        raise misfit(reference, flag, value, "a function")
    return value


def _named(reference: str, key: str) -> Any:
    if not is_reference(reference):
        raise ConfigError(f"{key}={brief(reference)} is not {FORM}, two names of Python.")
    name, _, attribute = reference.partition(":")
    module = _imported(name, f"{key}='{reference}'")
    if not hasattr(module, attribute):
        public = [word for word in vars(module) if not word.startswith("_")]
        raise ConfigError(
            f"{key}='{reference}': the module '{name}' ({shown(_file(module))}) has no "
            f"'{attribute}'. {nearest(attribute, public)}"
        )
    return getattr(module, attribute)


def misfit(reference: str, key: str, value: object, what: str) -> ConfigError:
    """The error for code that is not what its key needs.

    Args:
      reference: MODULE:NAME.
      key: the configuration key.
      value: what it stands for.
      what: what is needed, in words.
    """
    given = f"the class {value.__name__}" if isinstance(value, type) else brief(value, 100)
    return ConfigError(f"{key}='{reference}' must be {what}, and it is {given}.")


def _file(module: Any) -> str:
    return getattr(module, "__file__", None) or "built in"


def _imported(name: str, where: str) -> Any:
    try:
        _search_here_as_well()
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(
                f"{where}: there is no module '{missing}'. Install it, start the command in the "
                f"directory that holds it (here: {shown(os.getcwd())}), or name its directory in "
                "PYTHONPATH."
            ) from None
        raise _broken(name, where, error) from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _broken(name, where, error) from error


def _broken(name: str, where: str, error: BaseException) -> ConfigError:
    if isinstance(error, SyntaxError):  # its place is in no frame
        file, line, why = error.filename, error.lineno, error.msg
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        file, line, why = frame.filename, frame.lineno, error
    return ConfigError(
        f"{where}: the module '{name}' stops with {type(error).__name__} while it is imported "
        f"({shown(file)}, line {line}): {shown(why)}. --debug prints the traceback."
    )


def _search_here_as_well() -> None:
    """Puts the current directory at the end of the search path. It stays there: the processes that
    read data start with the same path.
    """
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.append(here)
        importlib.invalidate_caches()


def pick(
    table: Mapping[str, T], value: str, key: str, kind: type[T] | None = None, what: str = ""
) -> T:
    """The entry of a table that a value names, or the code that it refers to.

    Args:
      table: name -> entry.
      value: a name in it, or MODULE:NAME.
      key: the configuration key.
      kind: what the code has to be an instance of.
      what: that in words.

    Raises:
      ConfigError: see `load`.
    """
    return table[value] if value in table else load(value, key, kind, what)
