"""The evaluation forward of a vision model as a program for others (StableHLO)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from trainlib.model import weights
from trainlib.model.weights import Arrays
from vitattn.models import build, configure
from vitattn.task import task_of


def serving(
    config: ConfigDict,
) -> tuple[Callable[..., Any], dict[str, tuple[tuple, str]], dict[str, Any]]:
    """The evaluation forward as a pure function, for export.

    Returns:
      `(params, model_state, {"image": f32 [B, H, W, 3]}) -> what the task serves`: an array, or
      arrays by name; the inputs: name -> (shape, dtype), where a dimension "batch" is free; what a
      caller must know of both.
    """
    model = weights.abstract(build(config.model))
    height, width = configure(config.model).size
    serve, facts = task_of(config).serving(config)

    def forward(params: Arrays, model_state: Arrays, inputs: Arrays) -> Any:
        return serve(model.bind(params, model_state), inputs["image"])

    inputs = {"image": (("batch", height, width, 3), "float32")}
    return forward, inputs, image_facts(config) | facts


def image_facts(config: ConfigDict) -> dict[str, Any]:
    """How the images of a model are normalised, as plain data."""
    mean, std = task_of(config).statistics(config.data)
    return {
        "image": "(RGB / 255 - mean) / std",
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }
