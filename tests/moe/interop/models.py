"""Tiny models for the tests of interchange: configurations, weights, workdirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from moe import config as config_lib
from moe import interop
from trainlib import config as settings
from trainlib.formats import weight_source as weights
from trainlib.model import weights as nn

LENGTH = 24
SIZES = {
    **{"vocab_size": 128, "d_model": 24, "d_ff": 40, "num_heads": 4, "head_dim": 8},
    **{"encoder_blocks": 4, "decoder_blocks": 2, "dtype": "float32", "remat": "none"},
}
SWITCH = {"activation": "relu", "extra_ffn": "none", "sparse_period": 2, "sparse_offset": 1}
ONE = {"num_experts": 4, "top_k": 1, "group_sequences": 1, "min_capacity": 1}
TWO = {"num_experts": 4, "group_sequences": 1, "min_capacity": 1}
FEW = {"relative_attention_num_buckets": 10, "relative_attention_max_distance": 20}
EACH = {"sparse_period": 1, "sparse_offset": 0}
CUT = {"encoder_blocks": 5, "sparse_period": 3, "decoder_sparse_period": 2}

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "t5": ({}, {}),
    "t5_tied_relu": ({"tie_word_embeddings": True, "activation": "relu"}, {}),
    "switch": (SWITCH, ONE),
    "switch_tied": (SWITCH | {"tie_word_embeddings": True}, ONE),
    "switch_every_layer": (SWITCH | {"sparse_period": 1, "sparse_offset": 0}, ONE),
    "switch_encoder": (SWITCH | {"sparse_stacks": "encoder", **FEW}, ONE),
    "switch_decoder": (SWITCH | {"sparse_stacks": "decoder", **EACH}, ONE),
    "switch_cut": (SWITCH | CUT | {"partial_period": True}, ONE),
    "st_moe": ({"sparse_period": 2}, TWO),
    "st_moe_early": ({"sparse_period": 2, "sparse_offset": 0}, TWO),
}


def config(name: str) -> ConfigDict:
    """The configuration of one of `MODELS`."""
    model, routing = MODELS[name]
    made = settings.from_schema(config_lib.schema())
    made.name = name
    made.model.update(SIZES | model)
    made.routing.update(routing)
    # Few enough rows that tokens are dropped, so that capacity is compared too.
    made.routing.capacity_factor_eval = 0.75
    made.data.encoder_length = made.data.decoder_length = LENGTH
    return made


def arrays(made: ConfigDict, seed: int = 1) -> dict[str, np.ndarray]:
    """Random weights of standard deviation fan-in^-1/2, so that every part counts.

    Much larger ones would sharpen attention until rounding decides.
    """
    random = np.random.default_rng(seed)
    specs = interop.abstract(made).params
    scales = {
        n: 1 if n.endswith(("scale", "table")) else s.shape[-2] ** -0.5 for n, s in specs.items()
    }
    return {
        name: random.normal(0, scales[name], spec.shape).astype(np.float32)
        for name, spec in specs.items()
    }


def workdir(made: ConfigDict, path: Path, seed: int = 1) -> dict[str, np.ndarray]:
    """Writes random weights as a run; returns them."""
    values = arrays(made, seed)
    on_device = {name: jax.numpy.asarray(value) for name, value in values.items()}
    weights.save_as_run(made, interop.abstract(made), on_device, path)
    return values


def structs(values: dict[str, np.ndarray]) -> nn.Arrays:
    """As jax arrays."""
    return {name: jax.numpy.asarray(value) for name, value in values.items()}
