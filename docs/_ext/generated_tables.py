"""Tables that are read from the code when the pages are built, so that they cannot go stale.

```{keys} moe routing                          every key of a section: default, values, meaning
```{keys} vitattn model resnet.attention=local  those of one model and one kind of layer
```{flags} train                               the flags of a command
```{configurations}                            the shipped files and their variants
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from docs._ext.facts import configuration_rows, flag_rows, key_rows


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
