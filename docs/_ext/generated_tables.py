"""Tables that are read from the code when the pages are built, so that they cannot go stale.

```{keys} moe routing                          every key of a section: default, values, meaning
```{keys} vitattn model resnet.attention=local  those of one model and one kind of layer
```{flags} train                               the flags of a command
```{configurations}                            the shipped files and their variants
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Sequence
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

COMMANDS = {
    "train": "train",
    "evaluate": "evaluate",
    "predict": "predict",
    "prepare": "prepare",
    "export": "export",
    "import": "import_weights",
    "compile": "compile",
    "describe": "describe",
    "doctor": "doctor.__main__",
    "report": "report",
}


# ------------------------------------------------------------------------------------ what is read
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


def parser_of(command: str) -> Any:
    """The argument parser of a command; its names are those of `vitattn-moe`."""
    from launch import cli

    class Caught(Exception):
        pass

    def catch(parser: Any, argv: Sequence[str]) -> Any:
        raise Caught(parser)

    module = importlib.import_module(f"launch.{COMMANDS[command]}")
    with mock.patch.object(cli, "parse", catch):
        try:
            module.main([])
        except Caught as caught:
            return caught.args[0]
    raise LookupError(f"launch.{COMMANDS[command]} reads its arguments in a way of its own.")


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


# ------------------------------------------------------------------------------------ how it looks
def table(head: Iterable[str], rows: Iterable[Sequence[str]], css: str) -> nodes.table:
    """A table whose cells are plain text, or code between backquotes."""
    head = list(head)
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", row(head))
    group += nodes.tbody("", *(row(cells) for cells in rows))
    return nodes.table("", group, classes=[css])


def row(cells: Iterable[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", inline(cell)) for cell in cells))


def inline(text: str) -> nodes.paragraph:
    paragraph = nodes.paragraph()
    for number, part in enumerate(text.split("`")):
        if part:
            paragraph += nodes.literal("", part) if number % 2 else nodes.Text(part)
    return paragraph


def code(text: str) -> str:
    return f"`{text}`"


class Keys(SphinxDirective):
    """`{keys} FAMILY SECTION [MODEL[.FIELD=KIND]]`."""

    required_arguments = 2
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        rows = key_rows(*self.arguments)
        if not rows:
            raise self.error(f"there are no keys in {' '.join(self.arguments)}")
        head = ("key", "default", "takes", "meaning")
        return [table(head, ((code(k), code(d), t, m) for k, d, t, m in rows), "keys")]


class Flags(SphinxDirective):
    """`{flags} COMMAND`, or `{flags}` for those that all commands have."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        rows = [(code(flag), meaning) for flag, meaning in flag_rows(*self.arguments)]
        return [table(("flag", "meaning"), rows, "keys")]


class Configurations(SphinxDirective):
    """`{configurations}`."""

    def run(self) -> list[nodes.Node]:
        rows = [(code(name), claim, variants) for name, claim, variants in configuration_rows()]
        return [table(("configuration", "what it is", "variants"), rows, "configurations")]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("keys", Keys)
    app.add_directive("flags", Flags)
    app.add_directive("configurations", Configurations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
