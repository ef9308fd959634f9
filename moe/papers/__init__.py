"""The tables and figures of ST-MoE (arXiv 2202.08906) as data.

They were read in the text of the paper, those of the pictures excepted, whose values stand nowhere
as numbers. `exhibits` has them in the order of the paper.
"""

from __future__ import annotations

from moe.papers.design import design
from moe.papers.fine_tuning import fine_tuning
from moe.papers.paper import ST_MOE
from moe.papers.results import results
from moe.papers.stability import stability
from moe.papers.tracing import tracing
from trainlib.papers.exhibit import Exhibit

__all__ = ["ST_MOE", "exhibits"]


def exhibits() -> list[Exhibit]:
    """All tables, then all figures, by number."""
    found = [*stability(), *fine_tuning(), *design(), *results(), *tracing()]
    return sorted(found, key=lambda exhibit: (exhibit.kind == "figure", exhibit.number))
