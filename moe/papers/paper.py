"""Which paper it is, and how its exhibits are written down."""

from __future__ import annotations

from typing import Any

from trainlib.papers.exhibit import Exhibit, Paper, rows_of

ST_MOE = Paper(
    "st_moe", "2202.08906", "ST-MoE: Designing Stable and Transferable Sparse Expert Models"
)
READ = "read in the text of the paper"
PICTURE = "a picture: its values stand nowhere as numbers"


def table(number: int, title: str, columns: tuple[str, ...], rows: str, **more: Any) -> Exhibit:
    """A table whose rows are lines `label | cell | cell`."""
    more.setdefault("origin", READ if rows else "")
    return Exhibit(ST_MOE, "table", number, title, columns, rows_of(rows), **more)


def figure(
    number: int, title: str, columns: tuple[str, ...] = (), rows: str = "", **more: Any
) -> Exhibit:
    """A figure, most of which have no rows."""
    more.setdefault("origin", READ if rows else "")
    return Exhibit(ST_MOE, "figure", number, title, columns, rows_of(rows), **more)
