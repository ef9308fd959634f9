"""What a paper prints for exactly the model that a configuration builds."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

# Fields of a model that change how it trains, not which row of a table it is.
NOT_IN_TABLES = ("dtype", "bn_decay", "bn_eps", "zero_init", "dropout", "prior")


def cite(config: ConfigDict, paper: str) -> ConfigDict:
    """Fills in `published.*` for this model, or nothing where the paper has no such row.

    The source is `vitattn.papers`, so a variant cannot keep the score of the model it changes.

    Args:
      config: of a vision model.
      paper: its arXiv id, `papers.AUGMENTED` or `papers.STANDALONE`.
    """
    from vitattn import papers

    fields = _table_fields(config.model)
    rows = [row for row in papers.published() if row.source.startswith(paper)]
    row = next((row for row in rows if _table_fields(row.model) == fields), None)
    if row:
        for score in ("top1", "top5", "ap", "ap50", "ap75"):
            config.published[score] = getattr(row, score)
        config.published.params = f"{row.params}M" if row.params else ""
        config.published.gflops = float(row.gflops or 0)
        config.published.source = f"arXiv {row.source}"
    return config


def _table_fields(model: Any) -> dict[str, Any]:
    from vitattn.models import configure

    fields = dataclasses.asdict(configure(model))
    table = {name: value for name, value in fields.items() if name not in NOT_IN_TABLES}
    return {"name": model["name"], **table}
