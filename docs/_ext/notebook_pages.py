"""Shows notebooks as pages: text, code, and what the code printed. Nothing is executed; `make
nightly` executes them.
"""

from __future__ import annotations

import json
from typing import Any

from myst_parser.parsers.sphinx_ import MystParser

FENCE = "`````"


def as_markdown(notebook: dict[str, Any]) -> str:
    """A notebook (nbformat 4) as MyST Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(f"{FENCE}python\n{source}\n{FENCE}")
            parts += filter(None, map(_output, cell.get("outputs", ())))
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        style = "max-width: 100%; background: white"
        tag = f'<img style="{style}" alt="Picture" src="data:image/png;base64,{picture}">'
        return f"{FENCE}{{raw}} html\n{tag}\n{FENCE}"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"{FENCE}text\n{text.rstrip()}\n{FENCE}" if text.strip() else ""


class NotebookParser(MystParser):
    """Reads `.ipynb` files."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: Any) -> None:
        super().parse(as_markdown(json.loads(inputstring)), document)


def setup(app: Any) -> dict[str, Any]:
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
