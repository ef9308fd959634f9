"""Upcycling: the mixture starts as the function that the dense model was."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from moe import plan as plan_lib
from moe import upcycle
from moe.config import default_config
from trainlib.errors import CheckpointError, ConfigError
from trainlib.mesh import make_mesh


@pytest.mark.parametrize(
    "layout",
    [
        {"encoder_blocks": 2, "extra_ffn": "after", "expert_bias": "multiplicative"},
        {"sparse_period": 4, "sparse_offset": 1, "extra_ffn": "before", "kind": "encoder"},
        {"sparse_period": 1, "extra_ffn": "none", "activation": "relu", "kind": "decoder"},
    ],
)
def test_logits_are_those_of_the_dense_model(small, made, text, quick, layout):
    """Max |difference| with nothing dropped; a bias that starts as nothing is no obstacle."""
    sparse = small(4, **layout)
    dense = upcycle.dense_of(sparse)
    abstract, fresh = made(sparse)
    fresh |= {n: np.ones_like(w) for n, w in fresh.items() if n.endswith("experts.bias")}
    original, weights = made(dense)
    filled = upcycle.upcycle(jax.device_put(fresh), jax.device_put(weights), sparse)
    assert {n: w.shape for n, w in filled.items()} == {n: w.shape for n, w in fresh.items()}
    batch = text(2)

    @quick
    def both(filled, weights):
        after, reports = abstract.bind(filled, {})(batch, train=False)
        return after, original.bind(weights, {})(batch, train=False)[0], reports

    after, before, reports = both(filled, weights)
    dropped = [r["sparse"]["router"].metrics["dropped_choices"][0].sum() for r in reports.values()]
    assert sum(dropped) == 0
    assert np.abs(before).max() > 1
    last = "encoder" if sparse.kind == "encoder" else "decoder"
    real = batch[f"{last}_segments"] > 0  # padding is routed nowhere
    assert np.abs(np.asarray(after) - np.asarray(before))[real].max() < 1e-5


def test_a_dense_target_or_a_missing_run_is_refused(small, made, tmp_path):
    dense = upcycle.dense_of(small())
    with pytest.raises(ConfigError, match=r"routing\.num_experts is 0"):
        upcycle.upcycle({}, {}, dense)
    config = default_config("st_moe_tiny")
    config.upcycle.workdir = str(tmp_path)
    plan = plan_lib.make(config, make_mesh(2, 4, 1))
    with pytest.raises(CheckpointError, match="holds no run"):
        upcycle.start(plan, None)
