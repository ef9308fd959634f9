"""Named model sizes as data: what differs from the defaults of `Architecture` and `RoutingConfig`.

ST-MoE: arXiv 2202.08906 table 11 and the released flaxformer configurations. T5: v1.1, arXiv
1910.10683 and 2002.05202. Switch: arXiv 2101.03961 table 9; the printed 64 experts of Switch-XXL do
not give its 395 billion parameters, 128 do; Switch-C is read with 32 heads.
"""

from __future__ import annotations

from typing import Any

_TINY = {"vocab_size": 512, "width": 128, "hidden": 256, "heads": 4, "head_width": 32}
_BASE = {"width": 768, "hidden": 2048, "heads": 12, "head_width": 64}
_LARGE = {"width": 1024, "hidden": 2816, "heads": 16, "head_width": 64}
_XXL = {"width": 4096, "hidden": 10240, "heads": 64, "head_width": 64}


def _blocks(count: int) -> dict[str, Any]:
    return {"encoder_blocks": count, "decoder_blocks": count}


def _dense(shape: dict[str, Any], blocks: int) -> dict[str, Any]:
    return {**shape, **_blocks(blocks), "routing.num_experts": 0}


def _switch(shape: dict[str, Any], blocks: int, experts: int, period: int) -> dict[str, Any]:
    # Expert layers take the place of a dense layer and have no dense layer beside them; one expert
    # a token.
    return {
        **{**shape, **_blocks(blocks), "routing.num_experts": experts, "sparse_period": period},
        "extra_ffn": "none",
        "routing.top_k": 1,
    }


SIZES: dict[str, dict[str, Any]] = {
    "st_moe_tiny": {**_TINY, **_blocks(4), "routing.num_experts": 4},
    "st_moe_base": {**_BASE, **_blocks(12), "routing.num_experts": 16},
    "st_moe_l": {**_LARGE, **_blocks(24), "routing.num_experts": 32},
    "st_moe_32b": {
        **{"width": 5120, "hidden": 20480, "heads": 64, "head_width": 128},
        **_blocks(24),
        "routing.num_experts": 64,
    },
    "dense_tiny": _dense(_TINY, 4),
    "dense_l": _dense(_LARGE, 24),
    "t5_small": _dense({"width": 512, "hidden": 1024, "heads": 6, "head_width": 64}, 8),
    "t5_base": _dense(_BASE, 12),
    "t5_large": _dense(_LARGE, 24),
    "t5_xl": _dense({"width": 2048, "hidden": 5120, "heads": 32, "head_width": 64}, 24),
    "t5_xxl": _dense(_XXL, 24),
    "switch_base": _switch({**_BASE, "hidden": 3072, "activation": "relu"}, 12, 128, 2),
    "switch_large": _switch({**_LARGE, "hidden": 4096, "activation": "relu"}, 24, 128, 2),
    "switch_xxl": _switch(_XXL, 24, 128, 2),
    "switch_c": _switch(
        {"width": 2080, "hidden": 6144, "heads": 32, "head_width": 64, "activation": "relu"},
        *(15, 2048, 1),
    ),
}
