"""Docstrings as Sphinx takes them: code that is set in by four spaces becomes a block of Python,
not a quotation.
"""

from __future__ import annotations

import re
from typing import Any

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Example|Examples):\s*$")


def mark_code(lines: list[str]) -> list[str]:
    """Puts a directive before each indented block of the text that stands before the sections."""
    marked: list[str] = []
    inside = sections = False
    for number, line in enumerate(lines):
        sections = sections or bool(_SECTION.match(line))
        begins = line.startswith("    ") and not inside and (not number or not lines[number - 1])
        if begins and not sections:
            marked += [".. code-block:: python", ""]
        if line.strip():
            inside = line.startswith("    ") and (inside or begins)
        marked.append(line)
    return marked


def setup(app: Any) -> dict[str, Any]:
    def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        lines[:] = mark_code(lines)

    app.connect("autodoc-process-docstring", process, priority=400)  # napoleon has 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
