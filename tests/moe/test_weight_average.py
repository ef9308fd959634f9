"""Moving averages of the weights of language models, and runs that start from them, such as LM
adaptation.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from moe import evaluate, objective, train
from moe import plan as plan_lib
from moe.config import default_config
from moe.data import make_source, train_batches
from moe.start import finetune, upcycle
from trainlib.checkpoint.checkpoints import Checkpoints, to_flat
from trainlib.errors import CheckpointError, ConfigError
from trainlib.formats.weight_source import open_weights
from trainlib.sharding.mesh import make_mesh
from trainlib.step import step, train_state

pytestmark = pytest.mark.usefixtures("compiled_once")
DECAY = 0.3


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    """`config_of(**changes)`: eight devices, one sparse block a stack."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def make(**changes):
        config = default_config("st_moe_tiny")
        config.model.update(d_model=32, d_ff=32, num_heads=2, head_dim=16, vocab_size=384)
        config.model.update(encoder_blocks=1, decoder_blocks=1, sparse_period=1)
        config.model.update(dtype="float32", remat="none")
        config.routing.update(num_experts=4, group_sequences=1, capacity_factor_eval=8.0)
        config.data.update(cache=cache, workers=0, encoder_length=48, decoder_length=24)
        config.mesh.update(data=4, replica=2)
        config.update(batch_size=8, steps=3, eval_batches=2, ema_decay=DECAY)
        config.checkpoint.update(every=1, keep=9)
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            setattr(config[section] if section else config, name, value)
        return config

    return make


def averaged(history):
    """The average of weights after each update, written plainly: the last gets what is left of 1
    by min(DECAY, (1 + t) / (10 + t)) of the one before."""
    average = {name: np.asarray(value, np.float64) for name, value in history[0].items()}
    for t, weights in enumerate(history[1:]):
        decay = min(DECAY, (1 + t) / (10 + t))
        for name, value in weights.items():
            average[name] = decay * average[name] + (1 - decay) * np.asarray(value, np.float64)
    return average


def mesh_of(devices):
    sizes = (2, 4, 1) if devices == 8 else (1, 1, 1)
    return make_mesh(*sizes, devices=jax.devices()[:devices])


@pytest.mark.parametrize(
    ("dtype", "devices"),
    [
        ("float32", 8),
        pytest.param("float32", 1, marks=pytest.mark.thorough),
        pytest.param("bfloat16", 1, marks=pytest.mark.slow),
        pytest.param("bfloat16", 8, marks=pytest.mark.slow),
    ],
)
def test_the_average_follows_all_weights_where_they_lie(config_of, dtype, devices):
    """Experts too, in float32 whatever the layers compute in, and training is not changed by it."""
    found = {}
    for decay in (DECAY, 0.0) if devices == 1 else (DECAY,):
        config = config_of(ema_decay=decay, model__dtype=dtype, routing__balance_bias=True)
        config.routing.update(scores="sigmoid")
        plan = plan_lib.make(config, mesh_of(devices))
        state = train_state.create(plan.abstract, plan.optimizer, jax.random.key(0), plan.shardings)
        assert bool(state.ema) == bool(decay)
        train_step = step.compile_train(objective.make_loss(plan), plan)
        source, history = make_source(config.data, "train"), [jax.device_get(state.weights)]
        with train_batches(source, config.data, 8, 0, 0, 0, 1) as batches:
            for _ in range(3):
                batch = {n: v for n, v in next(batches).items() if n in objective.fields(plan)}
                state, _ = train_step(state, step.put_batch(batch, plan.batch_sharding))
                history.append(jax.device_get(state.weights))
        found[decay] = history[-1]
        if not decay:
            continue
        expected = averaged(history)
        assert set(state.ema) == set(expected)
        assert any(name.endswith("balance_bias") for name in expected)
        for name, value in state.ema.items():
            assert value.dtype == jnp.float32
            assert value.sharding.is_equivalent_to(state.weights[name].sharding, value.ndim)
            np.testing.assert_allclose(value, expected[name], rtol=2e-6, atol=1e-7, err_msg=name)
        experts = "encoder.sparse.experts.up"
        assert np.abs(np.asarray(state.ema[experts]) - history[-1][experts]).max() > 1e-4
        assert state.evaluated is state.ema
    for name, value in found.get(0.0, {}).items():
        np.testing.assert_array_equal(value, found[DECAY][name])


@pytest.fixture(scope="module")
def finished(config_of, tmp_path_factory):
    """A run of three steps with averages."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train.run(config_of(), workdir) == 0
    return workdir


def flat(workdir, plan, number):
    with_all = to_flat(plan.abstract_state())
    checkpoints = Checkpoints(workdir / "checkpoints")
    read = checkpoints.restore_some(number, with_all)
    checkpoints.close()
    return {name: np.asarray(value) for name, value in read.items()}


@pytest.mark.slow
def test_averages_are_evaluated_exported_resumed_and_started_from(
    config_of, finished, tmp_path, capsys
):
    plan = plan_lib.make(config_of())
    # What the run and the command measure is the average.
    summary = json.loads((finished / "summary.json").read_text())
    result = evaluate.run(config_of(), finished)
    assert result["cross_entropy"] == pytest.approx(summary["cross_entropy"], abs=1e-6)
    raw = evaluate.run(config_of(ema_decay=0.0), finished)
    assert abs(raw["cross_entropy"] - result["cross_entropy"]) > 1e-4
    whole = flat(finished, plan, 3)
    exported = open_weights(finished, plan.abstract)
    assert exported.averaged
    for name, value in exported.leaves(["encoder.sparse.experts.up"]):
        np.testing.assert_array_equal(value, whole[f"ema/{name}"])
    exported.close()

    # A run in two parts is the unbroken one, averages included.
    assert train.run(config_of(steps=2), tmp_path / "parts") == 0
    assert train.run(config_of(), tmp_path / "parts") == 0
    parts = flat(tmp_path / "parts", plan, 3)
    assert set(parts) == set(whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)

    # One cannot turn them on in the middle: there is nothing to go on from.
    assert train.run(config_of(steps=1, ema_decay=0.0), tmp_path / "without") == 0
    with pytest.raises(CheckpointError, match="ema"):
        train.run(config_of(), tmp_path / "without")

    # Others start from the averages, and their own averages from what they start with.
    for own in (0.5, 0.0):
        config = config_of(init_from=str(finished), ema_decay=own, seed=9)
        other = plan_lib.make(config)
        new = train_state.create(
            other.abstract, other.optimizer, jax.random.key(9), other.shardings
        )
        state, table = finetune.start(other, new)
        assert "moving averages" in table
        assert bool(state.ema) == bool(own)
        for name, value in state.params.items():
            np.testing.assert_array_equal(value, whole[f"ema/{name}"])
        for name, value in state.ema.items():
            np.testing.assert_array_equal(value, state.weights[name])
        for name, value in to_flat(state).items():
            if name.startswith("opt_state/") and not name.startswith("opt_state/rate/"):
                np.testing.assert_array_equal(value, whole[name])


def test_averages_of_a_sparse_run_begin_with_what_was_upcycled(config_of, tmp_path):
    dense = plan_lib.make(config_of(routing__num_experts=0), mesh_of(1))
    first = train_state.create(dense.abstract, dense.optimizer, jax.random.key(7), dense.shardings)
    first = train_state.TrainState(
        **{**vars(first), "ema": jax.tree.map(lambda x: x + 1, first.ema)}
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, first, {})
    checkpoints.close()
    config = config_of()
    config.upcycle.workdir = str(tmp_path)
    sparse = plan_lib.make(config, mesh_of(1))
    new = train_state.create(sparse.abstract, sparse.optimizer, jax.random.key(1), sparse.shardings)
    state, _ = upcycle.start(sparse, new, upcycle.read(sparse))
    table = np.asarray(first.ema["embedding.table"])
    np.testing.assert_array_equal(state.params["embedding.table"], table)
    for name, value in state.ema.items():
        np.testing.assert_array_equal(value, state.weights[name])


@pytest.mark.slow
def test_lm_adaptation_goes_on_from_a_run_and_ul2_names_its_denoisers(
    config_of, finished, tmp_path, capsys
):
    changes = configs.load("st_moe_tiny:lm_adapt")
    with pytest.raises(CheckpointError, match="init_from=CHECKPOINT holds no checkpoint"):
        train.run(
            config_of(init_from=changes.init_from, data__objective=changes.data.objective),
            tmp_path / "none",
        )
    settings = {"data__decoder_length": 48, "steps": 2, "seed": changes.seed}
    config = config_of(**settings, data__objective=changes.data.objective, init_from=str(finished))
    assert train.run(config, tmp_path / "adapted") == 0
    out = capsys.readouterr().out
    assert "Starting from step 3" in out
    assert "moving averages" in out
    assert "100 % of the encoder, 100 % of the decoder" in out
    summary = json.loads((tmp_path / "adapted" / "summary.json").read_text())
    result = evaluate.run(config, tmp_path / "adapted")
    assert result["cross_entropy"] == pytest.approx(summary["cross_entropy"], abs=1e-6)
    config.data.objective = "ul2"
    with pytest.raises(ConfigError, match=r"data\.objective: 'prefix_lm' -> 'ul2'"):
        train.run(config, tmp_path / "adapted")

    config = config_of(**settings, data__objective="ul2", eval_batches=1)
    config.checkpoint.best = "part/pydoc/S_0.25/cross_entropy"
    assert train.run(config, tmp_path / "ul2") == 0
    summary = json.loads((tmp_path / "ul2" / "summary.json").read_text())
    names = ("R_3_0.15", "R_8_0.15", "S_0.25", "X_3_0.5", "X_64_0.15", "X_64_0.5", "X_8_0.5")
    losses = [summary[f"part/pydoc/{name}/cross_entropy"] for name in names]
    assert summary["cross_entropy"] == pytest.approx(np.mean(losses), abs=1e-6)
    assert sum(f"pydoc/{name}" in summary["rows"] for name in names) == 7
