"""Upcycling into the experts of today's routers: shared, fine-grained, chosen by sigmoids."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from moe import objective, train
from moe import plan as plan_lib
from moe.config import default_config
from moe.start import upcycle
from trainlib import config as config_lib
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.errors import ConfigError
from trainlib.sharding.mesh import make_mesh
from trainlib.step import step

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


@pytest.mark.thorough
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)], ids=str
)
def test_a_run_with_every_table_starts_as_the_dense_one(tmp_path, text, shape, capsys):
    """Through its checkpoint, on one device and on eight: the loss of a batch."""

    def plan_of(experts: int, **changes: object):
        config = default_config("st_moe_tiny")
        config.model.update(d_model=16, d_ff=24, num_heads=2, head_dim=8, vocab_size=384)
        config.model.update(encoder_blocks=1, decoder_blocks=1, sparse_period=1, dtype="float32")
        config.routing.update(num_experts=experts, dispatch="dropless")
        config.data.update(encoder_length=12, decoder_length=7)
        config.update(batch_size=8)
        config_lib.assign(config, changes, "test")
        return plan_lib.make(config, make_mesh(*shape, devices=jax.devices()[: math.prod(shape)]))

    def loss(plan, state):
        evaluate = step.compile_eval(objective.make_evaluate(plan), plan)
        batch = {name: text(8)[name] for name in objective.fields(plan)}
        on_devices = step.put_batch(batch, plan.batch_sharding)
        sums, _ = evaluate(*plan.abstract.split(state.weights), on_devices)
        total, count = jax.device_get(sums["cross_entropy"])
        return total / count

    dense_plan = plan_of(0)
    dense = train.first_state(dense_plan)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, dense, {"config": config_lib.flatten(dense_plan.config)})
    checkpoints.close()
    tables = {"router_history": True, "expert_embedding": True, "expert_bias": "multiplicative"}
    plan = plan_of(
        8,
        **{"upcycle.workdir": str(tmp_path), "routing.second_policy": "all", "routing.top_k": 4},
        **{"routing.expert_groups": 2, "routing.groups_per_token": 2, "model.expert_d_ff": 12},
        **{"model.shared_experts": 1} | {f"model.{name}": value for name, value in tables.items()},
        **{f"routing.{name}": value for name, value in V3.items()},
    )
    sparse = train.first_state(plan)
    told = capsys.readouterr().out
    for name in (*tables, "shared.down", "balance_bias"):
        assert name.replace("expert_bias", "experts.bias") in told
    assert told.count("the dense model") == 2 + told.count("not the dense model")
    assert loss(plan, sparse) == pytest.approx(loss(dense_plan, dense), rel=1e-5)


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
