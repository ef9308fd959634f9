"""What is computed without training, beside what the papers print: row -> column -> text."""

from __future__ import annotations

import math

from launch.reproduce.experiment import Cells

# Range of figure 2 -> the number below its end, whose neighbours are as far apart as any there.
_RANGES = {
    "[2, 4)": 2.0,
    "[32, 64)": 32.0,
    "[1024, 2048)": 1024.0,
    "[2^20, 2^21)": 2.0**20,
    "[2^30, 2^31)": 2.0**30,
}
# Row of table 11 -> name of `moe.models.sizes`.
_SIZES = {
    "Dense-L": "dense_l",
    "T5-XXL": "t5_1_1_xxl",
    "Switch-XXL": "switch_xxl",
    "Switch-C": "switch_c",
    "ST-MoE-L": "st_moe_l",
    "ST-MoE-32B": "st_moe_32b",
}
_LENGTHS = (512, 114)  # tokens of the encoder and of the decoder
# Row of table 19 -> part of the mixture.
_PARTS = {
    "Filtered C4": "c4",
    "Filtered Webpages": "webpages",
    "Wikipedia": "wikipedia",
    "Conversations": "conversations",
    "Forums": "forums",
    "Books": "books",
    "News": "news",
}


def roundoff() -> Cells:
    """Spacing of bfloat16 and float32, of which rounding to nearest errs by half at most."""
    import jax.numpy as jnp

    def spacing(value: float, dtype: type) -> str:
        mantissa = jnp.finfo(dtype).nmant
        return f"{math.ldexp(value, -mantissa):.7g}"

    return {
        row: {
            "computed: bfloat16": spacing(value, jnp.bfloat16),
            "computed: float32": spacing(value, jnp.float32),
        }
        for row, value in _RANGES.items()
    }


def mixture() -> Cells:
    """Tokens and weights of the mixture of ST-MoE-32B that `data.source` names."""
    from moe.data.mixtures import MIXTURES

    parts = {part.name: part for part in MIXTURES["st_moe_32b"]}
    return {
        row: {
            "here: tokens (B)": str(parts[name].tokens_in_billions),
            "here: weight": f"{parts[name].rate:g}",
        }
        for row, name in _PARTS.items()
    }


def models() -> Cells:
    """Parameters and forward FLOPs of the models of table 11."""
    from moe.config import default_config
    from moe.describe import forward_flops
    from moe.models import architecture
    from moe.models.transformer import Transformer
    from trainlib.model import weights

    found = {}
    for row, size in _SIZES.items():
        config = default_config(size)
        model = architecture(config.model, config.routing)
        found[row] = {
            "counted: parameters": f"{weights.abstract(Transformer(model)).param_count:,}",
            "counted: FLOPs/seq": f"{forward_flops(model, *_LENGTHS) / 1e9:,.0f}B",
        }
    return found


def uniform_entropy() -> Cells:
    """Entropy of 32 experts that are equally likely, nats."""
    value = {"computed: uniform": f"{math.log(32):.3f}"}
    return {"Encoder": value, "Decoder": value}
