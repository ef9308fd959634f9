"""Upcycling into the experts of today's routers: shared, fine-grained, chosen by sigmoids."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from moe import plan as plan_lib
from moe.config import default_config
from moe.start import upcycle
from trainlib.errors import ConfigError
from trainlib.sharding.mesh import make_mesh

V3 = {"scores": "sigmoid", "gate_scale": 2.5, "balance_bias": True}
BLOCKS = {"encoder_blocks": 2, "decoder_blocks": 2, "sparse_period": 2}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("experts", "routing", "model"),
    [
        (
            *(4, V3 | {"expert_groups": 2, "groups_per_token": 1}),
            {"shared_experts": 1, "extra_ffn": "none"},
        ),
        # Experts of a third of the dense layer: 4 copies, of which a token takes two.
        (
            *(12, V3 | {"top_k": 6, "expert_groups": 2, "groups_per_token": 2}),
            {"expert_d_ff": 8, "shared_experts": 2, "kind": "decoder", "activation": "relu"},
        ),
    ],
    ids=["shared, in encoder and decoder", "fine-grained"],
)
def test_logits_are_those_of_the_dense_model(small, made, text, quick, experts, routing, model):
    """Whatever the gates are multiplied by, and with a router that is not even at the start."""
    room = {"capacity_factor": float(experts), "capacity_factor_eval": float(experts)}
    sparse = small(experts, routing | room, **BLOCKS | model)
    assert not upcycle.departures(sparse.routing, train=True, pieces=upcycle.pieces_of(sparse))
    abstract, fresh = made(sparse)
    original, weights = made(upcycle.dense_of(sparse))
    filled = upcycle.upcycle(jax.device_put(fresh), jax.device_put(weights), sparse)
    state = {n: np.zeros(s.shape, np.float32) for n, s in abstract.model_state.items()}
    assert len(state) == len(sparse.stacks)
    batch = text(2)

    @quick
    def both(filled, weights):
        sparse, dense = abstract.bind(filled, state), original.bind(weights, {})
        hidden, _ = sparse.hidden(batch)
        return sparse.logits(hidden), dense.logits(dense.hidden(batch)[0])

    after, before = map(np.asarray, both(filled, weights))
    real = batch["decoder_segments"] > 0
    assert np.abs(before).max() > 1
    assert np.abs(after - before)[real].max() < 1e-4 * np.abs(before).max()


def test_what_keeps_pieces_from_being_whole_copies_is_named(small):
    routing = small(8, {"top_k": 3, "expert_groups": 4, "groups_per_token": 4}).routing
    found = upcycle.departures(routing, train=True, pieces=4)
    assert [words.partition(" ")[0] for words in found] == [
        *("routing.top_k=3", "routing.expert_groups=4,")
    ]
    drawn = dataclasses.replace(
        routing, expert_groups=1, groups_per_token=1, top_k=4, sample_temperature=1.0
    )
    assert len(upcycle.departures(drawn, train=True, pieces=4)) == 1
    assert not upcycle.departures(drawn, train=False, pieces=4)


@pytest.mark.parametrize(
    ("width", "experts", "words"),
    [
        (100, 4, r"expert_d_ff=100 does not divide model\.d_ff=256"),
        (512, 4, r"expert_d_ff=512 does not divide model\.d_ff=256"),
        (64, 6, r"into 4 experts, and routing\.num_experts=6 is no multiple of 4\. Nearest: 8"),
    ],
)
def test_experts_that_the_dense_layer_cannot_be_cut_into_are_refused(
    tmp_path, width, experts, words
):
    config = default_config("st_moe_tiny")
    config.upcycle.workdir = str(tmp_path)
    config.model.expert_d_ff, config.routing.num_experts = width, experts
    plan = plan_lib.make(config, make_mesh(1, 1, 1, jax.devices()[:1]))
    with pytest.raises(ConfigError, match=words):
        upcycle.read(plan)
