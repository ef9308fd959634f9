"""`benchmarks.reproduce_small` with one step a network: trained, printed again, and never mixed."""

import json

import jax
import pytest

from benchmarks import reproduce_small
from trainlib.errors import ConfigError
from trainlib.sharding.mesh import make_mesh
from vitattn import plan, train

# One block a stage and half of the width compile sooner; everything else is as shipped.
SHORT = (
    "--seeds=1",
    "--steps=1",
    "--config.model.blocks=1,1,1,1",
    "--config.model.width=0.125",
    "--config.schedule.warmup_steps=0",
    "--config.data.workers=0",
)

# Each network is compiled twice.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kinds():
    return reproduce_small.KINDS


@pytest.fixture(scope="module")
def finished(kinds, tmp_path_factory):
    """On one device, whose programs compile sooner."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "make_mesh", lambda *_: make_mesh(devices=jax.devices()[:1]))
        assert reproduce_small.main([f"--runs={folder}", *SHORT]) == 0
    return folder


@pytest.fixture
def no_training(monkeypatch):
    def refuse(config, workdir):
        raise AssertionError(f"{workdir} would have been trained")

    monkeypatch.setattr(train, "run", refuse)


def test_one_step_of_a_network_is_measured_and_then_only_printed(
    kinds, finished, capsys, no_training
):
    results = json.loads((finished / "digits" / "results.json").read_text())
    assert [result["kind"] for result in results] == list(kinds)
    for result in results:
        assert (result["steps"], result["batch_size"], result["examples"]) == (1, 96, 360)
        assert result["curve"] == [[1, result["top1"]]]
    assert len({result["params"] for result in results}) == len(kinds)
    assert (finished / "digits" / "top1.png").stat().st_size > 1000
    capsys.readouterr()
    assert reproduce_small.main([f"--runs={finished}", *SHORT]) == 0
    out = capsys.readouterr().out
    assert "top-1 on 360 test images after 1 steps of 96 images, 1 seeds" in out
    for result in results:
        assert f"{result['params']:,}" in out
    assert json.loads((finished / "digits" / "results.json").read_text()) == results


def test_a_run_of_another_configuration_is_refused_before_anything_is_trained(
    finished, tmp_path, no_training
):
    """Finished or not; of the two seeds the second would still have to be trained."""
    other = [f"--runs={finished}", *SHORT, "--seeds=2", "--config.schedule.learning_rate=0.1"]
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.05 there, 0\.1 asked for") as caught:
        reproduce_small.main(other)
    assert "conv_1_steps_seed0" in str(caught.value)
    assert "--runs=DIR" in str(caught.value)
    stopped = tmp_path / "digits" / "conv_1_steps_seed0"
    stopped.mkdir(parents=True)
    values = json.loads((finished / "digits" / stopped.name / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps(values | {"optimizer.momentum": 0.8}))
    with pytest.raises(ConfigError, match=r"momentum: 0\.8 there"):
        reproduce_small.main([f"--runs={tmp_path}", *SHORT])
