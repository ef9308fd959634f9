"""The adapters by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import cast

from moe.conformance.cases import Case
from moe.conformance.reference import Answer
from moe.conformance.verdict import Adapter
from trainlib import extension
from trainlib.errors import ConfigError, UserError, nearest, shown

KNOWN = {  # name -> module, class, packages it needs
    "moe": ("moe.conformance.adapters.ours", "Ours", ()),
    "transformers_switch": (
        "moe.conformance.adapters.switch",
        "Switch",
        ("torch", "transformers"),
    ),
    "transformers_mixtral": (
        "moe.conformance.adapters.mixtral",
        "Mixtral",
        ("torch", "transformers"),
    ),
    "st_moe_pytorch": (
        "moe.conformance.adapters.st_moe",
        "StMoe",
        ("torch", "st_moe_pytorch"),
    ),
}


class _Function:
    """A function from a case to an answer as an adapter."""

    declares: Sequence[str] = ()

    def __init__(self, name: str, route: Callable[[Case], Answer]):
        self.name, self._route = name, route
        self.understands: Sequence[str] = getattr(route, "understands", ())

    def route(self, case: Case) -> Answer:
        return self._route(case)


def load(word: str) -> Adapter:
    """The adapter of a name, or that of MODULE:NAME: a class with `route`, or a function from a
    case to an answer.

    Raises:
      ConfigError: there is none, it needs a package that is not installed, or the class cannot be
        made without arguments.
    """
    if word in KNOWN:
        module, name, packages = KNOWN[word]
        for package in packages:
            _need(package, word)
        return getattr(importlib.import_module(module), name)()
    if not extension.is_reference(word):
        raise ConfigError(
            f"--adapter={shown(word, 60)} is no adapter. {nearest(word, KNOWN)}Adapters: "
            f"{', '.join(KNOWN)}, or MODULE:NAME of your own."
        )
    value = extension.load_from_flag(word, "--adapter")
    if not isinstance(value, type):
        return _Function(word, value)
    try:
        adapter = value()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"--adapter={shown(word, 60)}: the class stops with {type(error).__name__} when it is "
            f"made without arguments, as this command makes it: {shown(error)}. --debug prints the "
            "traceback."
        ) from error
    if not callable(getattr(adapter, "route", None)):
        raise extension.misfit(
            word, "--adapter", value, "a function from a case to an answer, or a class with `route`"
        )
    for name, default in (("name", word), ("declares", ())):
        if not hasattr(adapter, name):
            setattr(adapter, name, default)
    return cast(Adapter, adapter)


def _need(package: str, word: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"--adapter={word} runs the router of another code base: its package {package} cannot "
            f"be imported here ({shown(error)}): pip install {package.replace('_', '-')}."
        ) from error


def version(package: str) -> str:
    """Name and version of an installed package."""
    from importlib import metadata

    return f"{package} {metadata.version(package)}"
