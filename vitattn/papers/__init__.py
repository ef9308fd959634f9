"""The published models as data, beside what is built here.

Published figures are those that arXiv 1904.09925 (attention augmentation) and arXiv 1906.05909
(stand-alone attention) print: parameters in millions, GFLOP of one forward pass (a multiply-add is
2), top-1 and top-5 or average precision in percent. Where a computed figure does not match the
printed one, the row says why; nothing is tuned to hide it.
"""

from __future__ import annotations

from trainlib.model import weights
from trainlib.papers.exhibit import Exhibit
from vitattn.models import build, configure
from vitattn.papers.classification import classification
from vitattn.papers.detection import detection
from vitattn.papers.flops import paper_flops
from vitattn.papers.row import AUGMENTED, STANDALONE, Compared, Published
from vitattn.papers.tables import of_both

__all__ = ["AUGMENTED", "STANDALONE", "Compared", "Published", "compare", "exhibits", "published"]


def published() -> list[Published]:
    """Every row of both papers, by task, paper and table."""
    return classification() + detection()


def exhibits() -> list[Exhibit]:
    """Every table and figure of both papers, with the cells of `published`."""
    return of_both(classification() + detection())


def compare(row: Published) -> Compared:
    """Builds the model of a row, without arrays, and counts."""
    config = configure(row.model)
    return Compared(row, weights.abstract(build(row.model)).param_count, paper_flops(config))
