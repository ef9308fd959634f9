"""Named models as data: what differs from the defaults of `Architecture` and `RoutingConfig`.

A name that a file in configs/ has as well means the same model there: a test compares them.

ST-MoE: arXiv 2202.08906 table 11 and the released flaxformer configurations. T5: v1.1, arXiv
1910.10683 and 2002.05202. Switch: arXiv 2101.03961 table 9; the printed 64 experts of Switch-XXL do
not give its 395 billion parameters, 128 do; Switch-C is read with 32 heads.
"""

from __future__ import annotations

from typing import Any

_TINY = {"vocab_size": 512, "d_model": 128, "d_ff": 256, "num_heads": 4, "head_dim": 32}
_BASE = {"d_model": 768, "d_ff": 2048, "num_heads": 12, "head_dim": 64}
_LARGE = {"d_model": 1024, "d_ff": 2816, "num_heads": 16, "head_dim": 64}
_XXL = {"d_model": 4096, "d_ff": 10240, "num_heads": 64, "head_dim": 64}


def _blocks(count: int) -> dict[str, Any]:
    return {"encoder_blocks": count, "decoder_blocks": count}


def _dense(shape: dict[str, Any], blocks: int) -> dict[str, Any]:
    return {**shape, **_blocks(blocks), "routing.num_experts": 0}


def _switch(shape: dict[str, Any], blocks: int, experts: int, period: int) -> dict[str, Any]:
    # Expert layers take the place of a dense layer and have no dense layer beside them; one expert
    # a token.
    return {
        **shape,
        **_blocks(blocks),
        "routing.num_experts": experts,
        "sparse_period": period,
        "extra_ffn": "none",
        "routing.top_k": 1,
    }


# At this size nothing is short of memory, CPUs compute bfloat16 slower than float32, and a least
# capacity of 4 would hide what is dropped.
_ON_CPU = {"dtype": "float32", "remat": "none", "routing.min_capacity": 1}
_PAPER_GROUPS = {"routing.group_sequences": 4}  # ST-MoE, appendix C

SIZES: dict[str, dict[str, Any]] = {
    "st_moe_tiny": {**_TINY, **_ON_CPU, **_blocks(4), "routing.num_experts": 4},
    "st_moe_base": {**_BASE, **_blocks(12), "routing.num_experts": 16},
    "st_moe_l": {**_LARGE, **_PAPER_GROUPS, **_blocks(24), "routing.num_experts": 32},
    "st_moe_32b": {
        "d_model": 5120,
        "d_ff": 20480,
        "num_heads": 64,
        "head_dim": 128,
        **_PAPER_GROUPS,
        **_blocks(24),
        "routing.num_experts": 64,
    },
    "dense_tiny": _dense({**_TINY, **_ON_CPU}, 4),
    "dense_l": _dense(_LARGE, 24),
    "t5_1_1_small": _dense({"d_model": 512, "d_ff": 1024, "num_heads": 6, "head_dim": 64}, 8),
    "t5_1_1_base": _dense(_BASE, 12),
    "t5_1_1_large": _dense(_LARGE, 24),
    "t5_1_1_xl": _dense({"d_model": 2048, "d_ff": 5120, "num_heads": 32, "head_dim": 64}, 24),
    "t5_1_1_xxl": _dense(_XXL, 24),
    "switch_base": _switch({**_BASE, "d_ff": 3072, "activation": "relu"}, 12, 128, 2),
    "switch_large": _switch({**_LARGE, "d_ff": 4096, "activation": "relu"}, 24, 128, 2),
    "switch_xxl": _switch(_XXL, 24, 128, 2),
    "switch_c": _switch(
        {"d_model": 2080, "d_ff": 6144, "num_heads": 32, "head_dim": 64, "activation": "relu"},
        blocks=15,
        experts=2048,
        period=1,
    ),
}
