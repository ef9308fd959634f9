"""What the generated tables of the pages hold, read from the code. Needs nothing but the package
itself, so that tests of the pages run where Sphinx is not installed.
"""

from __future__ import annotations

import ast
import importlib
from typing import Any

from launch.program import parser_of


def schema_of(family: str, choices: str = "") -> dict[str, tuple[Any, str]]:
    """Dotted key -> (default, meaning) of a family.

    Args:
      family: "vitattn" or "moe".
      choices: of vitattn, the model and kinds of layer that decide which keys exist, such as
        "resnet" or "resnet.attention=local".
    """
    values = {}
    if choices:
        model, _, kind = choices.partition(".")
        values["model.name"] = model
        if model == "retinanet":
            values["task"] = "detection"
        if kind:
            field, _, name = kind.partition("=")
            values[f"model.{field}.kind"] = name
    return importlib.import_module(f"{family}.config").schema(values)


def key_rows(family: str, section: str, choices: str = "") -> list[tuple[str, str, str, str]]:
    """(key, default, what it takes, meaning) of the keys of a section; "." is those without one.

    With `choices` of a kind of layer, only the keys that this kind brings.
    """
    from trainlib.keys import kind_of

    schema = schema_of(family, choices)
    _, _, kind = choices.partition(".")
    known = schema_of(family, choices.partition(".")[0]) if kind else {}
    chosen = {
        name: entry
        for name, entry in schema.items()
        if name not in known
        and (("." not in name) if section == "." else in_section(name, section))
    }
    return [
        (name, as_typed(entry[0]), kind_of(entry).words, entry[1]) for name, entry in chosen.items()
    ]


def as_typed(value: Any) -> str:
    """A value as `--config.KEY=` takes it; brackets and quotes stand for nothing."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and value and not any(isinstance(v, tuple) for v in value):
        return ",".join(map(as_typed, value))
    return str(value) if value != "" else "''"


def in_section(name: str, section: str) -> bool:
    """Whether a dotted key lies in a section."""
    return name.startswith(section + ".")


def flag_rows(command: str = "") -> list[tuple[str, str]]:
    """(flag, meaning) of a command, without those that all commands have; "" is these alone."""
    from launch import cli

    common = cli.parser("vitattn-moe", "")
    everywhere = {action.dest for action in common._actions}
    parser = parser_of(command) if command else common
    formatter = parser._get_formatter()
    rows = []
    for action in parser._actions:
        name = action.option_strings[-1] if action.option_strings else ""
        if (command and action.dest in everywhere) or not action.help:
            continue
        metavar = formatter._metavar_formatter(action, action.dest.upper())(1)[0]
        shown = f"{name} {metavar}" if name and action.nargs != 0 else name or metavar
        rows.append((shown, formatter._expand_help(action)))
    return rows


def configuration_rows() -> list[tuple[str, str, str]]:
    """(name, first sentence of the docstring, variants) of every shipped configuration."""
    from configs.common import load

    rows = []
    for path in load.shipped():
        docs = ast.get_docstring(ast.parse(path.read_text())) or ""
        claim = " ".join(docs.split("\n\n")[0].split())
        variants = getattr(load.load_module(path), "VARIANTS", {})
        rows.append((path.stem, claim, ", ".join(f"`{name}`" for name in variants)))
    return rows
