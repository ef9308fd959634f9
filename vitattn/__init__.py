"""Convolutional networks with self-attention (arXiv 1904.09925, 1906.05909): layers, models,
images, training, evaluation, prediction.

As a library:

    import vitattn
    from flax import nnx

    model = vitattn.create_model("aa_resnet50", num_classes=10, rngs=nnx.Rngs(0))
    logits = model(images, train=False)  # [B, 224, 224, 3] -> f32 [B, 10]
    print(vitattn.load("runs/mine").predict("cat.png"))

`vitattn.layers` has the layers and attention functions for networks of your own. Names are imported
when they are first used, so that `import vitattn` itself does not load JAX.
"""
# A package of vitattn-moe.

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitattn import layers
    from vitattn.library import (
        ClassProbability,
        Detection,
        Detections,
        LoadedModel,
        Prediction,
        create_model,
        list_models,
        load,
    )

__all__ = [
    "ClassProbability",
    "Detection",
    "Detections",
    "LoadedModel",
    "Prediction",
    "create_model",
    "layers",
    "list_models",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "layers":
        return importlib.import_module("vitattn.layers")
    if name in __all__:
        return getattr(importlib.import_module("vitattn.library"), name)
    raise AttributeError(f"module 'vitattn' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
