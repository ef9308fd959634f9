"""The tables and figures of the papers together, chosen, and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from launch.planning.latency import matches
from trainlib.papers.exhibit import Exhibit


def exhibits() -> list[Exhibit]:
    """Every table and figure of the three papers, by paper, tables first."""
    from moe.papers import exhibits as of_text
    from vitattn import papers

    return [*papers.exhibits(), *of_text()]


def chosen(pattern: str) -> list[Exhibit]:
    """Exhibits that have the pattern in their source or title, whole, and others with those of
    their rows that have it; all for "".
    """
    found = []
    for exhibit in exhibits():
        if matches(pattern, f"{exhibit.paper.name} {exhibit.source}", exhibit.title):
            found.append(exhibit)
            continue
        rows = tuple(row for row in exhibit.rows if matches(pattern, row[0]))
        if rows:
            found.append(dataclasses.replace(exhibit, rows=rows))
    return found


def lines(exhibits: Sequence[Exhibit]) -> Iterator[str]:
    """Each exhibit: its title, its cells in columns, and what is known of them."""
    for exhibit in exhibits:
        yield f"\n{exhibit.source}: {exhibit.title}"
        head = [("", *exhibit.columns)] if exhibit.columns else []
        cells = [*head, *((label, *own) for label, own in exhibit.rows)]
        if exhibit.rows:
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for row in cells:
                texts = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                yield f"  {'  '.join(texts)}".rstrip()
        for title, words in (
            ("cells", exhibit.origin),
            ("read as", exhibit.reading),
            ("not here", exhibit.absent),
        ):
            if words:
                yield f"  {title}: {words}"
