"""Small pieces of HTML: names come from files and from the code of users, so that every text is
escaped here.
"""

from __future__ import annotations

import html
import json
from typing import Any

from trainlib.errors import plain

MOST_NAME = 300  # characters; names of transformed functions grow long


def text(value: object) -> str:
    """Text as HTML shows it, between tags or in an attribute; nothing in it steers a browser."""
    return html.escape(plain(value), quote=True)


def name(value: str) -> str:
    """The same for a name, of which the middle is left out where it is very long."""
    if len(value) > MOST_NAME:
        value = f"{value[: MOST_NAME // 2]} ... {value[-MOST_NAME // 2 :]}"
    return text(value)


def tip(*lines: object) -> str:
    """The attribute of an element that says these lines when one points at it."""
    return f'title="{"&#10;".join(name(str(line)) for line in lines if line)}"'


def number(value: float) -> str:
    """A coordinate with as few characters as need be."""
    return f"{value:.3f}".rstrip("0").rstrip(".") or "0"


def section(identity: str, title: str, note: str, body: str) -> str:
    """A part of the page; `note` is one sentence below its title, already HTML."""
    return (
        f'<section id="{identity}"><h2>{text(title)}</h2>'
        f'<p class="note">{note}</p>\n{body}\n</section>'
    )


def data(identity: str, content: Any) -> str:
    """What a script of the page reads: JSON in an element that is never run, and that no text in it
    can end.

    Raises:
      ValueError: a number in it is not finite, which JSON does not have.
    """
    said = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        said = said.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="{identity}">{said}</script>\n'
