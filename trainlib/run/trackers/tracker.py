"""Experiment trackers of a user: a class that `writers.extra=module:Class` names and the run feeds.

    class Tracker:
        def __init__(self, workdir: pathlib.Path, config: dict): ...
        def write(self, step: int, metrics: dict[str, float]): ...
        def summary(self, metrics: dict[str, float]): ...  # optional
        def close(self): ...

`trackers.feed` calls it; this module finds the class and says what is wrong with it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from trainlib import extension
from trainlib.errors import ConfigError, shown

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

    Args:
      text: several are separated by commas; "" for none.

    Raises:
      ConfigError: no such module or class (see `trainlib.extension.load`), or a class without the
        methods of a `Tracker`.
    """
    return {name: _class(name) for name in extension.names(KEY, text)}


def _class(name: str) -> Callable[..., Tracker]:
    found: Any = extension.load(name, KEY, type, "a class")
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(
            f"{KEY}={shown(name)}: the class has no method {' and no method '.join(missing)}. A "
            "tracker has __init__(workdir, config), write(step, metrics) and close()."
        )
    return found


def failed(name: str, what: str, error: BaseException) -> ConfigError:
    """The error for a class that did not start: what happened, and in which line of its file."""
    return ConfigError(
        f"{KEY}={shown(name)} {what}: {reason(error)}. Mend it, or leave {KEY} out; "
        "--debug prints the traceback."
    )


def reason(error: BaseException) -> str:
    """An error of somebody else's code on one line, with the place that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if Path(f.filename).parent != Path(__file__).parent]
    place = f" ({shown(Path(theirs[0].filename).name)}, line {theirs[0].lineno})" if theirs else ""
    text = shown(error, 300).rstrip(".")
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"
