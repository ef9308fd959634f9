"""The facts of a vision configuration: parameters, FLOPs, published figures. No array is made."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from trainlib.model.weights import abstract
from vitattn.models import build, configure
from vitattn.models.counts import forward_flops, params_by_part


def describe(config: ConfigDict) -> dict[str, Any]:
    """Returns the facts of a configuration as plain data.

    Returns:
      name, family, task, params, params_by_part, flops_per_example (forward pass of one image,
      multiply-add = 2), image_size (of a square, or height and width), num_classes, published
      (top1, top5, ap, ap50, ap75, params, gflops, source; those that are known).
    """
    resolved = configure(config.model)
    model = abstract(build(config.model))
    published = {key: value for key, value in config.published.items() if value}
    return {
        "name": config.name,
        "family": config.family,
        "task": config.task,
        "params": model.param_count,
        "params_by_part": params_by_part(model),
        "flops_per_example": forward_flops(model, resolved.size),
        "image_size": resolved.image_size,
        "num_classes": resolved.num_classes,
        "data": config.data.source,
        "published": published,
    }


def row(facts: dict[str, Any]) -> list[str]:
    """Returns the cells of a configuration in the table of all configurations."""
    published = facts["published"]
    first, *others = ("ap", "ap50", "ap75") if "ap" in published else ("top1", "top5")
    scores = [f"{published[k]:.1f}" if k in published else "-" for k in (first, *others)]
    return [
        facts["name"],
        f"{facts['task']}, {facts['data']}",
        f"{facts['params']:,}",
        f"{facts['flops_per_example'] / 1e9:.2f} G/image",
        " / ".join(scores) if first in published else "-",
        published.get("source", "-"),
    ]
