"""Upcycling: the mixture starts as the function that the dense model was."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from moe import plan as plan_lib
from moe import train
from moe.config import default_config
from moe.objective import router_metrics
from moe.start import upcycle
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.errors import CheckpointError, ConfigError
from trainlib.sharding.mesh import make_mesh


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(
            {"encoder_blocks": 2, "extra_ffn": "after", "expert_bias": "multiplicative"},
            marks=pytest.mark.thorough,
        ),
        {"sparse_period": 4, "sparse_offset": 1, "extra_ffn": "before", "kind": "encoder"},
        {"sparse_period": 1, "extra_ffn": "none", "activation": "relu", "kind": "decoder"}
        | {"router_history": True, "expert_embedding": True},
        {"kind": "encoder", "extra_ffn_blocks": (0, 3)},
        pytest.param(
            {"encoder_blocks": 3, "partial_period": True, "sparse_offset": 0, "decoder_blocks": 1}
            | {"sparse_stacks": "encoder"},
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_logits_are_those_of_the_dense_model(small, made, text, quick, layout):
    """Max |difference| with nothing dropped; a bias and tables that start as nothing are no
    obstacle.
    """
    sparse = small(4, **layout)
    dense = upcycle.dense_of(sparse)
    abstract, fresh = made(sparse)
    fresh |= {n: np.ones_like(w) for n, w in fresh.items() if n.endswith("experts.bias")}
    tables = ("router_history", "expert_embedding")
    fresh |= {n: np.zeros_like(w) for n, w in fresh.items() if n.endswith(tables)}
    original, weights = made(dense)
    filled = upcycle.upcycle(jax.device_put(fresh), jax.device_put(weights), sparse)
    assert {n: w.shape for n, w in filled.items()} == {n: w.shape for n, w in fresh.items()}
    batch = text(2)

    @quick
    def both(filled, weights):
        sparse, dense = abstract.bind(filled, {}), original.bind(weights, {})
        hidden, reports = sparse.hidden(batch)
        return sparse.logits(hidden), dense.logits(dense.hidden(batch)[0]), reports

    after, before, reports = both(filled, weights)
    metrics = router_metrics(reports)
    dropped = [v[0].sum() for n, v in metrics.items() if n.endswith("/dropped_choices")]
    assert dropped
    assert sum(dropped) == 0
    assert np.abs(before).max() > 1
    last = "encoder" if sparse.kind == "encoder" else "decoder"
    real = batch[f"{last}_segments"] > 0  # padding is routed nowhere
    assert np.abs(np.asarray(after) - np.asarray(before))[real].max() < 1e-5


def test_what_keeps_the_first_step_from_the_dense_model_is_named(small):
    """The defaults of ST-MoE do, in both modes; the settings that are asked for do not."""
    routing = {"second_policy": "random", "capacity_factor": 1.25, "capacity_factor_eval": 2.0}
    found = upcycle.departures(small(4, routing).routing, train=True)
    assert [words.partition(" ")[0] for words in found] == [
        *("routing.second_policy=random", "routing.capacity_factor=1.25,")
    ]
    found = upcycle.departures(small(4, routing).routing, train=False)
    assert "routing.capacity_factor_eval=2, which may drop choices (4, or" in " ".join(found)
    for served in ({}, {"capacity_factor": 4.0}, {"dispatch": "dropless", "capacity_factor": 0.1}):
        assert not upcycle.departures(small(4, served).routing, train=True)
    noisy = upcycle.departures(small(4, {"whole_expert_dropout": 0.1}).routing, train=True)
    assert noisy == ["routing.whole_expert_dropout=0.1 (0)"]
    for unlike in ({"top_k": 1}, {"normalize_gates": False}, {"router": "experts_choose"}):
        assert len(upcycle.departures(small(4, unlike).routing, train=False)) == 1
    one = {"num_experts": 1, "top_k": 1, "normalize_gates": False}
    assert not upcycle.departures(small(1, one).routing, train=True)


@pytest.fixture
def begin(tmp_path):
    """`begin(changes)`: starts a model of 4 experts, with changes of `model.`, from a stored dense
    one; returns the table that is printed.
    """

    def plan_of(experts: int, changes: dict):
        config = default_config("st_moe_tiny")
        config.model.update(d_model=8, d_ff=16, num_heads=2, head_dim=4, vocab_size=384)
        config.model.update(encoder_blocks=1, decoder_blocks=1, sparse_period=1, dtype="float32")
        config.model.update(changes)
        config.routing.num_experts = experts
        config.upcycle.workdir = str(tmp_path)
        return plan_lib.make(config, make_mesh(1, 1, 1, devices=jax.devices()[:1]))

    def zeros(plan):
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), plan.abstract_state())

    def run(changes: dict, experts: int = 0):
        stored = plan_of(experts, {})
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        meta = {"config": {"data.vocabulary": "sentencepiece:other.model"}}
        checkpoints.save(3, jax.device_put(zeros(stored), stored.shardings), meta)
        checkpoints.close()
        plan = plan_of(4, changes)
        dense = upcycle.read(plan)  # refuses before there is a state
        return upcycle.start(plan, jax.device_put(zeros(plan), plan.shardings), dense)[1]

    return run


def test_a_start_says_what_is_new_and_what_differs(begin):
    told = begin({})
    assert "Upcycled from step 3" in told
    assert "4 copies of the feed-forward layer in 2 blocks" in told
    assert "experts.router, ffn.down, ffn.gate, ffn.up, ffn_norm.scale, optimiser slots" in told
    assert "not the dense model at first: routing.second_policy=random (all)" in told
    assert "data.vocabulary was 'sentencepiece:other.model' and is 'bytes'" in told


@pytest.mark.parametrize(
    ("here", "named"),
    [
        ({"d_ff": 24}, "params/encoder.dense.ffn.up (1, 1, 8, 16) there, (1, 1, 8, 24) here"),
        ({"tie_word_embeddings": True}, "params/output.kernel (8, 384)"),  # it would be lost
    ],
)
def test_a_checkpoint_of_another_model_is_told_as_a_table(begin, here, named):
    with pytest.raises(CheckpointError, match="not the dense form of this model") as error:
        begin(here)
    assert named in error.value.details


def test_a_sparse_checkpoint_is_refused(begin):
    with pytest.raises(CheckpointError, match="has experts already"):
        begin({}, experts=4)


def test_a_dense_target_or_a_missing_run_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(train.train_state, "create", lambda *_: pytest.fail("weights were made"))
    config = default_config("st_moe_tiny")
    config.upcycle.workdir = str(tmp_path)
    plan = plan_lib.make(config, make_mesh(2, 4, 1))
    with pytest.raises(CheckpointError, match=r"upcycle\.workdir=.* holds no checkpoint"):
        train.first_state(plan)
    config.routing.num_experts = 0
    plan = plan_lib.make(config, make_mesh(2, 4, 1))
    with pytest.raises(ConfigError, match=r"routing\.num_experts is 0"):
        train.first_state(plan)
