"""Layers and attention of T5 for networks of your own, on sequences [B, L, D].

    from flax import nnx
    from moe.layers import Attention, AttentionBias, RelativeBias

    positions = RelativeBias(8, bidirectional=True, rngs=nnx.Rngs(0))
    attention = Attention(512, num_heads=8, head_dim=64, rngs=nnx.Rngs(1))
    y, _ = attention(x, bias=AttentionBias.of(positions, segments))  # [B, L, 512] -> [B, L, 512]

Built with `rngs` a layer is a plain `flax.nnx.Module` that holds arrays. `t5_attention` is the
attention alone, a function of queries, keys and values [B, L, N, H] (N heads of width H). Both take
kernels on a TPU, which never hold all pairs of tokens; `use_kernels("plain")` takes none. Names are
imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe.layers.attention import Attention, t5_attention
    from moe.layers.attention_bias import AttentionBias, BiasArrays, RelativeBias
    from moe.layers.embed import Embedding
    from moe.layers.ffn import FeedForward
    from moe.layers.norm import RMSNorm
    from moe.layers.sparse import SparseFFN, SparseOutput
    from trainlib.sharding.kernels import use_kernels

__all__ = [
    "Attention",
    "AttentionBias",
    "BiasArrays",
    "Embedding",
    "FeedForward",
    "RMSNorm",
    "RelativeBias",
    "SparseFFN",
    "SparseOutput",
    "t5_attention",
    "use_kernels",
]

# Public name -> the module that has it.
_MODULES = {
    "Attention": "moe.layers.attention",
    "AttentionBias": "moe.layers.attention_bias",
    "BiasArrays": "moe.layers.attention_bias",
    "Embedding": "moe.layers.embed",
    "FeedForward": "moe.layers.ffn",
    "RMSNorm": "moe.layers.norm",
    "RelativeBias": "moe.layers.attention_bias",
    "SparseFFN": "moe.layers.sparse",
    "SparseOutput": "moe.layers.sparse",
    "t5_attention": "moe.layers.attention",
    "use_kernels": "trainlib.sharding.kernels",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'moe.layers' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
