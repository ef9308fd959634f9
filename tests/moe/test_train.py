"""The real loop on real text at a tiny size: training, resuming, evaluating, upcycling."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal

import jax
import numpy as np
import pytest

from launch import report
from moe import evaluate, objective, train
from moe import plan as plan_lib
from moe.config import default_config
from moe.data import eval_batches, make_source
from moe.eval import held_out
from moe.start import upcycle
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.errors import ConfigError, Preempted
from trainlib.run.metric_writers import read
from trainlib.step import train_state as state_lib
from trainlib.step.step import compile_eval

# A run of its own each would double the time of these tests.
pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    """`config_of(**changes)`: eight devices, one sparse block a stack, a few seconds to compile."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def make(experts: int = 4, **changes):
        config = default_config("st_moe_tiny")
        config.model.update(d_model=32, d_ff=32, num_heads=2, head_dim=16, vocab_size=384)
        config.model.update(encoder_blocks=1, decoder_blocks=1, sparse_period=1)
        config.model.update(dtype="float32", remat="none")
        config.routing.update(num_experts=experts, group_sequences=1, capacity_factor_eval=8.0)
        config.data.update(cache=cache, workers=0, encoder_length=48, decoder_length=24)
        config.mesh.update(data=4, replica=2)
        config.update(batch_size=8, steps=4, eval_batches=2, log_every=1)
        config.checkpoint.every = config.eval_every = 2
        config.router.log_every = 1
        config.update(changes)
        return config

    return make


def logged(workdir, kind):
    return [r for r in read(workdir / "metrics.jsonl") if r["kind"] == kind]


@pytest.fixture(scope="module")
def finished(config_of, tmp_path_factory):
    """A run of four steps."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train.run(config_of(), workdir) == 0
    return workdir


@pytest.mark.thorough
def test_a_run_leaves_losses_router_metrics_and_pictures(finished):
    lines = logged(finished, "train")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    # A new model knows nothing: ln 384 and the spread of its first logits.
    assert math.log(384) - 0.5 < lines[0]["cross_entropy"] < math.log(384) + 1.5
    for stack in ("encoder", "decoder"):
        shares = [lines[-1][f"router/{stack}.0/load_{expert}"] for expert in range(4)]
        assert sum(shares) == pytest.approx(1)
        assert 0 <= lines[-1][f"router/{stack}.0/dropped_choices"] < 1
        assert 0 < lines[-1][f"router/{stack}.0/entropy"] <= math.log(4) + 1e-6
        assert lines[-1][f"router/{stack}.0/grad_norm"] > 0
        assert 0 < lines[-1][f"router/{stack}.0/gate_mass"] <= 1 + 1e-6
    samples = [line for line in logged(finished, "router") if "watched_loss" in line]
    assert [line["watched_loss"] for line in samples] == [line["loss"] for line in lines]
    (moved,) = (line for line in logged(finished, "router") if "watched_loss" not in line)
    assert moved["step"] == 4  # the first checkpoint has none before it
    assert 0 < moved["router/encoder.0/churn"] < 1
    summary = json.loads((finished / "summary.json").read_text())
    assert 2 < summary["unigram_entropy"] < summary["cross_entropy"]
    assert "load" in summary["rows"]["router encoder.0"]
    assert "nats" in summary["rows"]["unigram entropy"]
    for name in ("config.json", "curves.png", "expert_load.png"):
        assert (finished / name).stat().st_size > 0
    assert list((finished / "tensorboard").iterdir())


@pytest.mark.thorough
def test_a_run_stopped_in_its_evaluations_is_the_unbroken_one_bit_for_bit(
    config_of, finished, tmp_path, monkeypatch
):
    """Stopped in the evaluation after step 2, in the one that makes up for it, and in the last."""

    def run(stop_in: int):
        count = 0

        @contextlib.contextmanager
        def batches(*args):
            nonlocal count
            count += 1
            with eval_batches(*args) as found:
                yield found if count != stop_in else asking(found)

        def asking(found):
            os.kill(os.getpid(), signal.SIGTERM)
            yield from found

        monkeypatch.setattr(held_out, "eval_batches", batches)
        return train.run(config_of(), tmp_path)

    for stop_in, step in ((1, 2), (1, 2), (2, 4)):
        with pytest.raises(Preempted, match=f"after step {step} of 4"):
            run(stop_in)
        kept = Checkpoints(tmp_path / "checkpoints").manifests()
        assert list(kept)[-1] == step
        assert not kept[step].metrics
        assert [r["step"] for r in logged(tmp_path, "train")] == list(range(1, step + 1))
        assert [r["step"] for r in logged(tmp_path, "eval")] == [2][: stop_in - 1]
    assert run(0) == 0
    for kind in ("train", "eval", "router", "alert"):
        assert logged(tmp_path, kind) == logged(finished, kind)
    for step, kept in Checkpoints(tmp_path / "checkpoints").manifests().items():
        assert kept.metrics == Checkpoints(finished / "checkpoints").manifest(step).metrics
    assert run(1) == 0  # complete: nothing is evaluated once more
    ours, theirs = (json.loads((d / "summary.json").read_text()) for d in (tmp_path, finished))
    assert ours["cross_entropy"] == theirs["cross_entropy"]
    changed = config_of()
    changed.model.d_model = 64
    with pytest.raises(ConfigError, match=r"model\.d_model"):
        train.run(changed, tmp_path)


def test_evaluating_the_checkpoint_gives_the_score_of_the_run(config_of, finished, capsys):
    result = evaluate.run(config_of(), finished)
    summary = json.loads((finished / "summary.json").read_text())
    assert result["cross_entropy"] == pytest.approx(summary["cross_entropy"], abs=1e-6)
    assert "unigram entropy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_holds_nothing_out_is_not_evaluated(config_of, tmp_path, capsys):
    """From the first line to the report, and the advice of each refusal, carried out."""
    (tmp_path / "mine.txt").write_text("A small text of one's own.\n" * 100)
    (tmp_path / "table.csv").touch()
    config = config_of()
    config.data.update(source=f"text:{tmp_path}", holdout=0.0)
    config.checkpoint.best = "cross_entropy"
    with pytest.raises(ConfigError, match=r"checkpoint\.best .*data\.holdout=0"):
        train.run(config, tmp_path / "run")
    config.checkpoint.best = ""
    assert train.run(config, tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "held out nothing (data.holdout=0): nothing is evaluated" in out
    assert "1 .csv, another suffix (such as table.csv)" in out
    assert not logged(tmp_path / "run", "eval")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rows"]["evaluation"] == "none: data.holdout=0 holds nothing out"
    assert "cross_entropy" not in summary
    assert train.run(config, tmp_path / "run") == 0
    assert "Complete: 4 steps are done" in capsys.readouterr().out
    report.main([f"--workdir={tmp_path / 'run'}"])
    assert "step 4" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"nothing of data\.source=.* is held out") as refused:
        evaluate.run(config, tmp_path / "run")
    assert "--config.data.source=text:PATH --config.data.holdout=0.99" in str(refused.value)
    (tmp_path / "other.txt").write_text("Another text, which nothing was trained on.\n" * 100)
    config.data.update(source=f"text:{tmp_path / 'other.txt'}", holdout=0.99)
    assert evaluate.run(config, tmp_path / "run")["tokens"] > 100


def test_parts_of_a_mixture_are_evaluated_each_and_weighted_by_their_rates(config_of, tmp_path):
    """`eval_batches` is of each part: the second is reached although the first has more."""
    for letter in "ab":
        (tmp_path / f"{letter}.jsonl").write_text(
            "".join(f'{{"text": "{letter * 100}"}}\n' for _ in range(200))
        )
    config = config_of(experts=0, eval_batches=1)
    names = [f"jsonl:{tmp_path}/{letter}.jsonl" for letter in "ab"]
    parts = tuple(zip(names, (3.0, 1.0), strict=True))
    config.data.update(source="mixture", parts=parts, holdout=0.5)

    def eval_step(params, state, batch):
        """The letter a costs 1, everything else nothing."""
        weights = np.asarray(batch["decoder_weights"])
        own = weights * (np.asarray(batch["decoder_targets"]) == 3 + ord("a"))
        return {"cross_entropy": (own.sum(), weights.sum()), "accuracy": (8.0, 16.0)}, {}

    source, plan = make_source(config.data, "holdout"), plan_lib.make(config)
    weights = dict.fromkeys(plan.abstract.params, np.zeros(()))
    result = held_out.over_split(eval_step, weights, source, plan, unigram=0.5)
    first, second = (result.parts[name] for name in names)
    assert 0.5 < first.cross_entropy < 1
    assert second.cross_entropy == 0
    assert result.whole.cross_entropy == pytest.approx(0.75 * first.cross_entropy)
    assert result.whole.accuracy == 0.5
    tokens = [first.tokens, second.tokens]
    assert result.whole.tokens == sum(tokens) > tokens[0] > 0
    assert set(result.flat()) == {"cross_entropy", "accuracy"} | {
        f"part/{name}/{value}" for name in names for value in ("cross_entropy", "accuracy")
    }
    assert set(held_out.figure_names(source, None, 0.1)) == set(result.flat())
    of_parts = {f"part/{names[0]}/tokens": tokens[0], f"part/{names[1]}/tokens": tokens[1]}
    assert result.everything() == {
        **result.flat(),
        **of_parts,
        "tokens": sum(tokens),
        "unigram_entropy": 0.5,
    }
    rows = dict(result.rows(config))
    assert rows[names[1]] == f"cross-entropy 0.0000, accuracy 50.00 % on {tokens[1]:,} tokens"


@pytest.mark.slow
def test_a_decoder_alone_learns_running_text(config_of, tmp_path, capsys):
    config = config_of(experts=0, steps=2, eval_batches=1)
    config.model.kind, config.data.objective = "decoder", "language_model"
    assert train.run(config, tmp_path) == 0
    assert "held-out rows of 24 tokens" in capsys.readouterr().out
    first, second = logged(tmp_path, "train")
    assert math.log(384) - 0.5 < first["cross_entropy"] < math.log(384) + 1.5
    assert second["cross_entropy"] < first["cross_entropy"]


@pytest.mark.thorough
def test_a_sparse_run_starts_from_the_checkpoint_of_a_dense_one(config_of, tmp_path):
    dense = plan_lib.make(config_of(experts=0))
    key = jax.random.key(7)
    first = state_lib.create(dense.abstract, dense.optimizer, key, dense.shardings)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, first, {})
    checkpoints.close()

    config = config_of()
    config.upcycle.workdir = str(tmp_path)
    sparse = plan_lib.make(config)
    created = state_lib.create(sparse.abstract, sparse.optimizer, key, sparse.shardings)
    state, told = upcycle.start(sparse, created, upcycle.read(sparse))
    assert "step 3" in told
    source = make_source(config.data, "holdout")
    scores = [
        held_out.over_split(
            compile_eval(objective.make_evaluate(plan), plan), params, source, plan, unigram=0.0
        ).whole.cross_entropy
        for plan, params in ((dense, first.params), (sparse, state.params))
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert not any(state.step for state in (first, state))
