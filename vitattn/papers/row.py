"""What a row of a paper's table holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

AUGMENTED, STANDALONE = "1904.09925", "1906.05909"

PAIRS = "the paper counts products of pairs of pixels once, here each multiply-add is 2"


@dataclasses.dataclass(frozen=True)
class Published:
    """One row of a paper's table.

    Attributes:
      label: the model, as the table calls it.
      source: arXiv id and what the table is about.
      model: plain data for `vitattn.models.build`.
      params: millions, as printed ("" where not stated).
      gflops: as printed ("" where not stated).
      top1: percent; 0 where only plotted, and of detectors.
      top5: percent; 0 where not stated.
      note: why a computed figure is not the printed one; "" where it is.
      ap: COCO average precision, percent; 0 of classifiers.
      ap50: the same at an IoU of 0.5.
      ap75: the same at an IoU of 0.75.
      more: what its table prints beside these, heading -> text.
    """

    label: str
    source: str
    model: Mapping[str, Any]
    params: str = ""
    gflops: str = ""
    top1: float = 0.0
    top5: float = 0.0
    note: str = ""
    ap: float = 0.0
    ap50: float = 0.0
    ap75: float = 0.0
    more: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Compared:
    """A published row beside what is built here: exact parameters, FLOPs as the papers count."""

    published: Published
    params: int
    flops: float
