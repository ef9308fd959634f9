"""`launch.train` as a user types it: what a run leaves, stopping, going on, evaluating."""

import json
import signal
import subprocess
import sys

import pytest

from launch import evaluate, train
from tests.launch.commands import ROOT, TINY, environment, killed, losses, records, run, stop_after
from trainlib.errors import CheckpointError, ConfigError
from vitattn.classification.evaluation import MEASURED


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """A run of 12 steps that nothing disturbed, in a process that imported no TensorFlow."""
    workdir = tmp_path_factory.mktemp("finished")
    code = (
        "import sys\n"
        "from launch.train import main\n"
        "main(sys.argv[1:])\n"
        "bad = [m for m in ('tensorflow', 'tensorflow_datasets', 'sklearn') if m in sys.modules]\n"
        "sys.exit(f'imported {bad}' if bad else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *TINY, "--config.steps=12", f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.fixture
def here(compiled_once, capsys):
    """Calls a command in this process, which has imported all of it; returns what it printed."""

    def call(main, *arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return call


@pytest.mark.thorough
def test_a_run_leaves_what_the_readme_says_and_ends_with_a_summary(finished):
    workdir, output = finished
    for name in ("config.json", "class_names.txt", "metrics.jsonl", "curves.png", "checkpoints/12"):
        assert (workdir / name).exists(), name
    assert list((workdir / "tensorboard").glob("*tfevents*"))
    for word in ("1,437 training and 360 evaluation images", "top-1", "throughput", "curves.png"):
        assert word in output
    assert [step for step, _ in losses(workdir)] == list(range(1, 13))
    assert records(workdir, "eval")[-1]["examples"] == 360
    assert set(MEASURED) < set(records(workdir, "eval")[-1])
    assert json.loads((workdir / "config.json").read_text())["model.width"] == 0.25


@pytest.mark.slow
def test_a_finished_run_says_so_and_more_steps_go_on(finished, here, cache):
    workdir, _ = finished
    before = losses(workdir)
    again = here(train.main, *TINY, "--config.steps=12", f"--workdir={workdir}")
    assert "Complete: 12 steps are done" in again
    assert losses(workdir) == before
    more = run("train", *TINY, "--config.steps=14", f"--workdir={workdir}", cache=cache)
    assert more.returncode == 0, more.stderr
    assert "going on from 12" in more.stdout
    assert "steps: 12 -> 14" in more.stdout
    assert losses(workdir)[:12] == before
    assert [step for step, _ in losses(workdir)] == list(range(1, 15))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(finished, cache, tmp_path, number):
    """The loss series is the same, bit for bit, as that of a run that nobody stopped."""
    long = (*TINY, "--config.steps=400", "--config.checkpoint.every=400")
    stopped = stop_after(3, number, *long, cache=cache, workdir=tmp_path)
    assert stopped.returncode == 75, stopped.stderr
    assert "Stopped on request after step" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    reached = len(losses(tmp_path))
    unbroken = losses(finished[0])
    assert losses(tmp_path)[: min(reached, 2)] == unbroken[: min(reached, 2)]
    resumed = stop_after(reached + 4, number, *long, cache=cache, workdir=tmp_path)
    assert resumed.returncode == 75, resumed.stderr
    assert f"going on from {reached}" in resumed.stdout
    whole = tmp_path / "whole"
    reference = stop_after(reached + 4, number, *long, cache=cache, workdir=whole)
    assert reference.returncode == 75
    assert losses(tmp_path)[: reached + 4] == losses(whole)[: reached + 4]


@pytest.mark.slow
def test_a_run_killed_inside_a_save_goes_on_bit_for_bit(finished, cache, tmp_path):
    arguments = (*TINY, "--config.steps=12")
    killed("mid_shard", 10, *arguments, cache=cache, workdir=tmp_path)
    done = run("train", *arguments, f"--workdir={tmp_path}", cache=cache)
    assert done.returncode == 0, done.stderr
    assert "going on from 5" in done.stdout
    assert losses(tmp_path)[:12] == losses(finished[0])[:12]


@pytest.mark.thorough
def test_evaluation_repeats_the_last_one_of_the_run(finished, here, cache):
    workdir, _ = finished
    done = run("evaluate", f"--workdir={workdir}", "--json", cache=cache)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    written = next(r for r in records(workdir, "eval") if r["step"] == found["step"])
    assert (found["top1"], found["loss"]) == (written["top1"], written["loss"])
    # Exact whatever the batch: 360 images in padded batches of 200, on 8 devices.
    batches = "--config.eval_batch_size=200"
    other = here(evaluate.main, f"--workdir={workdir}", "--json", batches)
    found_other = json.loads(other.splitlines()[-1])
    assert found_other["top1"] == found["top1"]
    assert found_other["loss"] == pytest.approx(found["loss"], rel=1e-6)
    with pytest.raises(CheckpointError, match="no step 7"):
        here(evaluate.main, f"--workdir={workdir}", "--step=7")


def test_a_run_is_not_mixed_with_another_model(finished, here):
    workdir, _ = finished
    arguments = [*TINY, "--config.model.width=0.5", "--config.steps=20", f"--workdir={workdir}"]
    with pytest.raises(ConfigError, match=r"model\.width: 0\.25 -> 0\.5"):
        here(train.main, *arguments)


@pytest.mark.slow
def test_the_saved_configuration_starts_the_same_run(finished, cache, tmp_path):
    workdir, _ = finished
    config = f"--config={workdir / 'config.json'}"
    done = run("train", config, "--config.steps=12", f"--workdir={tmp_path}", cache=cache)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path)[:12] == losses(workdir)[:12]
