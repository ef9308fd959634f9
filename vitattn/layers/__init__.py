"""Layers and attention functions for networks of your own, on maps [B, H, W, C].

    from flax import nnx
    from vitattn.layers import AugmentedConv, LocalAttention, relative_attention_2d

    layer = AugmentedConv(16, 32, 3, num_heads=2, size=14, rngs=nnx.Rngs(0))
    y = layer(x)  # [B, 14, 14, 16] -> [B, 14, 14, 32]

Built with `rngs` a layer is a plain `flax.nnx.Module` that holds arrays. The attention functions
take queries, keys and values as [B, H, W, N, d] (N heads before the depth d of one head), with
queries that are not scaled: the scale, d**-0.5 unless another is given, is applied inside. Layers
and functions are kernels in programs for a TPU, where a kernel can do what is asked;
`use_kernels("plain")` takes none. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainlib.sharding.kernels import use_kernels
    from vitattn.kernels.local import halo_attention, local_attention
    from vitattn.kernels.relative import relative_attention_2d
    from vitattn.layers.attention_stem import AttentionStem
    from vitattn.layers.augmented import AugmentedConv
    from vitattn.layers.conv import Classifier, Conv
    from vitattn.layers.local import HaloAttention, LocalAttention
    from vitattn.layers.norm import BatchNorm
    from vitattn.layers.squeeze import Cbam, GatherExcite, SqueezeExcite

__all__ = [
    "AttentionStem",
    "AugmentedConv",
    "BatchNorm",
    "Cbam",
    "Classifier",
    "Conv",
    "GatherExcite",
    "HaloAttention",
    "LocalAttention",
    "SqueezeExcite",
    "halo_attention",
    "local_attention",
    "relative_attention_2d",
    "use_kernels",
]

# Public name -> the module that has it.
_MODULES = {
    "AttentionStem": "vitattn.layers.attention_stem",
    "AugmentedConv": "vitattn.layers.augmented",
    "BatchNorm": "vitattn.layers.norm",
    "Cbam": "vitattn.layers.squeeze",
    "Classifier": "vitattn.layers.conv",
    "Conv": "vitattn.layers.conv",
    "GatherExcite": "vitattn.layers.squeeze",
    "HaloAttention": "vitattn.layers.local",
    "LocalAttention": "vitattn.layers.local",
    "SqueezeExcite": "vitattn.layers.squeeze",
    "halo_attention": "vitattn.kernels.local",
    "local_attention": "vitattn.kernels.local",
    "relative_attention_2d": "vitattn.kernels.relative",
    "use_kernels": "trainlib.sharding.kernels",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'vitattn.layers' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
