"""A table or a figure of a paper as data: what it prints, how that is known, how it is read here.

Cells are text as printed ("4/6", "-1.755 +- 0.02"), so that no digit is added or lost; "" is a cell
that the paper leaves empty or that is not known here. Nothing is filled in: where the values of a
figure cannot be read off, it has no rows, and says so.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

KINDS = ("table", "figure")
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper: the name that commands take, its arXiv id, and its title."""

    name: str
    arxiv: str
    title: str


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """One table or figure.

    Attributes:
      paper: of which paper.
      kind: "table" or "figure".
      number: as the paper counts.
      title: what it is about.
      columns: headings of the cells, with their units.
      rows: label and cells of each row; no two labels are the same.
      origin: how the cells are known: read in the paper, in a translation, in a summary, or
        remembered.
      reading: how it is read here, misprints and disagreements; "" where nothing is to be said.
      absent: why cells are missing; "" where all that is printed is here.
    """

    paper: Paper
    kind: str
    number: int
    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, tuple[str, ...]], ...] = ()
    origin: str = ""
    reading: str = ""
    absent: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: a {self.kind!r} is neither of {KINDS}")
        wrong = [label for label, cells in self.rows if len(cells) != len(self.columns)]
        if wrong:
            raise ValueError(f"{self.name}: not {len(self.columns)} cells in {wrong}")
        if len(self.labels) != len(set(self.labels)):
            raise ValueError(f"{self.name}: rows of the same name")
        if not self.rows and not self.absent:
            raise ValueError(f"{self.name}: no rows, and no reason")
        if bool(self.rows) != bool(self.origin):
            raise ValueError(f"{self.name}: cells and their origin belong together")

    @property
    def name(self) -> str:
        """Such as "table 5"."""
        return f"{self.kind} {self.number}"

    @property
    def labels(self) -> list[str]:
        """Labels of the rows."""
        return [label for label, _ in self.rows]

    @property
    def source(self) -> str:
        """Such as "arXiv 2202.08906 table 5"."""
        return f"arXiv {self.paper.arxiv} {self.name}"

    def cells(self, label: str) -> dict[str, str]:
        """Column -> cell of a row.

        Raises:
          KeyError: there is no such row.
        """
        return dict(zip(self.columns, dict(self.rows)[label], strict=True))

    def facts(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "paper": self.paper.name,
            "arxiv": self.paper.arxiv,
            "kind": self.kind,
            "number": self.number,
            "title": self.title,
            "rows": {label: self.cells(label) for label in self.labels},
            "origin": self.origin,
            "reading": self.reading,
            "absent": self.absent,
        }


def number(cell: str) -> float | None:
    """The number that a cell begins with, before its spread or its unit; None where there is none.

    A share of runs ("4/6") is no number.
    """
    found = _NUMBER.match(cell)
    if found is None or cell[found.end() :].startswith("/"):
        return None
    return float(found[0])


def rows_of(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Rows written as lines `label | cell | cell`; blank lines are left out.

    Example:
      >>> rows_of("Baseline | 4/6 | -1.755 +- 0.02")
      (('Baseline', ('4/6', '-1.755 +- 0.02')),)
    """
    lines = [line.split("|") for line in text.splitlines() if line.strip()]
    return tuple((label.strip(), tuple(c.strip() for c in cells)) for label, *cells in lines)


def by_name(exhibits: Iterable[Exhibit]) -> Mapping[tuple[str, str], Exhibit]:
    """(name of the paper, name) -> exhibit."""
    return {(exhibit.paper.name, exhibit.name): exhibit for exhibit in exhibits}
