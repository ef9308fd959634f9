"""The options of DeepSeek-V3 together against the router of that model in transformers."""

from __future__ import annotations

import numpy as np
import pytest

from moe.routing.config import RoutingConfig
from moe.routing.route import route


@pytest.mark.thorough
def test_gates_and_experts_are_those_of_transformers():
    """24 experts in 4 groups, 5 choices in the best 2, biases of both signs; gates times 2.5."""
    import torch
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as models

    settings = models.DeepseekV3Config(
        hidden_size=8,
        n_routed_experts=24,
        num_experts_per_tok=5,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    rng = np.random.default_rng(0)
    x, weight, bias = (
        rng.normal(size=shape).astype(np.float32) for shape in ((50, 8), (24, 8), (24,))
    )
    theirs = models.DeepseekV3TopkRouter(settings)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(weight))
        theirs.e_score_correction_bias.copy_(torch.tensor(bias))
        _, gates, experts = theirs(torch.tensor(x))
    config = RoutingConfig(
        *(24, 5),
        scores="sigmoid",
        balance_bias=True,
        gate_scale=2.5,
        expert_groups=4,
        groups_per_token=2,
        dispatch="dropless",
        second_policy="all",
    )
    ours = route((x @ weight.T)[None], config, train=True, bias=bias)
    ours, theirs = (  # theirs come in no order
        [np.take_along_axis(part, np.argsort(pair[0], axis=-1), axis=-1) for part in pair]
        for pair in (
            (np.asarray(ours.expert[0]), np.asarray(ours.gates[0])),
            (experts.numpy(), gates.numpy()),
        )
    )
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
