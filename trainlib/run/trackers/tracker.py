"""Experiment trackers of a user: a class that `writers.extra=module:Class` names and the run feeds.

    class Tracker:
        def __init__(self, workdir: pathlib.Path, config: dict): ...
        def write(self, step: int, metrics: dict[str, float]): ...
        def summary(self, metrics: dict[str, float]): ...  # optional
        def close(self): ...

`trackers.feed` calls it; this module finds the class and says what is wrong with it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from trainlib.errors import ConfigError, nearest, shown

KEY = "writers.extra"
METHODS = ("write", "close")


class Tracker(Protocol):
    """What a run calls: in its first process only, always from one and the same thread, which is
    not the main one.

    Args:
      workdir: directory of the run. A run that resumes has the same one, so that a tracker can go
        on with what it began there.
      config: dotted key -> value, as in config.json.
    """

    def __init__(self, workdir: Path, config: dict[str, Any]): ...

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Takes what was measured at a step: `train/loss`, `eval/top1`, `goodput/mfu`, ...

        A step comes several times where several kinds were measured at it, and again after a
        resume from an earlier checkpoint. NaN and infinities are possible.
        """
        ...

    def close(self) -> None:
        """Ends the run: finished, stopped or failed. Nothing is called afterwards.

        A tracker may also have `summary(metrics)`, which is called once before, with the figures of
        the last evaluation, if the run has done all its steps.
        """
        ...


def classes(text: str) -> dict[str, Callable[..., Tracker]]:
    """The classes that `writers.extra` names: `module:Class` -> class.

    Modules are found in the current directory and among the installed ones.

    Args:
      text: several are separated by commas; "" for none.

    Raises:
      ConfigError: no such module or class, an error while the module is imported, or a class
        without the methods of a `Tracker`.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    return {name: _class(name) for name in names}


def _class(name: str) -> Callable[..., Tracker]:
    module_name, colon, attribute = name.partition(":")
    if not (
        colon and attribute.isidentifier() and all(map(str.isidentifier, module_name.split(".")))
    ):
        raise ConfigError(
            f"{KEY}={shown(name)} does not name a class. Write module:Class, for example "
            f"--config.{KEY}=my_tracker:Tracker for the class Tracker of my_tracker.py in the "
            "current directory."
        )
    module = _module(name, module_name)
    found: Any = getattr(module, attribute, None)
    if not inspect.isclass(found):
        known = [n for n, value in vars(module).items() if inspect.isclass(value)]
        raise ConfigError(
            f"{KEY}={shown(name)}: the module {module_name} has no class {attribute}. "
            f"{nearest(attribute, known)}".rstrip()
        )
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(
            f"{KEY}={shown(name)}: the class has no method {' and no method '.join(missing)}. A "
            "tracker has __init__(workdir, config), write(step, metrics) and close()."
        )
    return found


def _module(name: str, module_name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        # At the end, so that a file here never takes the place of an installed module. It stays,
        # for what the class imports later.
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        first = module_name.split(".")[0]
        if error.name in (first, module_name):
            raise ConfigError(
                f"{KEY}={shown(name)}: there is no module {error.name}, neither in {shown(here)} "
                "nor among the installed ones. Start the command in the directory of the file, or "
                "install its package."
            ) from None
        raise failed(name, "could not be imported", error) from error
    except Exception as error:
        raise failed(name, "could not be imported", error) from error


def failed(name: str, what: str, error: BaseException) -> ConfigError:
    """The error for a class that did not start: what happened, and in which line of its file."""
    return ConfigError(
        f"{KEY}={shown(name)} {what}: {reason(error)}. Mend it, or leave {KEY} out; "
        "--debug prints the traceback."
    )


def reason(error: BaseException) -> str:
    """An error of somebody else's code on one line, with the place that raised it."""
    ours, frames = Path(__file__).parent, traceback.extract_tb(error.__traceback__)
    theirs = [
        (frame.filename, frame.lineno)
        for frame in frames
        if Path(frame.filename).parent not in (ours, Path(importlib.__file__).parent)
        and not frame.filename.startswith("<frozen")
    ]
    if isinstance(error, SyntaxError) and error.filename:
        theirs = [(error.filename, error.lineno)]
    place = f" ({shown(Path(theirs[0][0]).name)}, line {theirs[0][1]})" if theirs else ""
    text = shown(error.msg if isinstance(error, SyntaxError) else str(error), 300).rstrip(".")
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"
