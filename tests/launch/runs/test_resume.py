"""A killed mixture-of-experts run goes on bit for bit; damage, locks and stops as users meet them.

The vision family has the same in `test_train.py`, beside the run that nothing disturbed.
"""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness.faults import MOMENTS

from tests.compiler import flags
from tests.launch.commands import ROOT, TINY_MOE, command, environment, killed, losses, run, stop_after


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return (*TINY_MOE, f"--config.data.cache={tmp_path_factory.mktemp('tokens')}")


@pytest.mark.slow
def test_a_run_killed_inside_a_save_goes_on_bit_for_bit(tiny, cache, tmp_path):
    """Up to its death the first run is undisturbed, so its losses are those to be met again."""
    long = (*tiny, "--config.steps=9")
    undisturbed = killed("before_manifest", 6, *long, cache=cache, workdir=tmp_path)
    assert len(undisturbed) >= 6  # training goes on while a save is under way
    done = run("train", *long, f"--workdir={tmp_path}", cache=cache)
    assert done.returncode == 0, done.stderr
    warned = " ".join(done.stderr.split())
    assert "Step 6 in" in warned
    assert "its save was never finished" in warned
    assert "took over the lock of process" in warned
    assert "going on from 3" in done.stdout
    assert losses(tmp_path)[: len(undisturbed)] == undisturbed
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 10))

    # The newest step rots: it is named and passed over, or stops the run where that was asked for.
    rot(tmp_path / "checkpoints" / "9")
    before = losses(tmp_path)
    stopped = run("train", *long, "--on_corrupt=fail", f"--workdir={tmp_path}", cache=cache)
    assert stopped.returncode == 66, stopped.stderr
    assert "Step 9 in" in " ".join(stopped.stderr.split())
    again = run("train", *long, f"--workdir={tmp_path}", cache=cache)
    assert again.returncode == 0, again.stderr
    assert "going on from 6" in again.stdout
    assert losses(tmp_path) == before


def rot(step: Path) -> None:
    """Flips bits all over the largest data file of a step."""
    path = max((p for p in step.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 4, len(content), max(1, len(content) // 50)):
        content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_every_moment_of_a_save(tiny, cache, tmp_path, moment):
    long = (*tiny, "--config.steps=9", "--config.checkpoint.keep=1")
    undisturbed = killed(moment, 6, *long, cache=cache, workdir=tmp_path)
    done = run("train", *long, f"--workdir={tmp_path}", cache=cache)
    assert done.returncode == 0, done.stderr
    reached = 6 if moment == "during_gc" else 3
    assert f"going on from {reached}" in done.stdout
    assert losses(tmp_path)[: len(undisturbed)] == undisturbed
    assert len(losses(tmp_path)) == 9


@pytest.mark.slow
def test_a_second_run_is_refused_and_the_first_is_stopped_in_two_ways(tiny, cache, tmp_path):
    long = (*tiny, "--config.steps=100000", "--config.checkpoint.every=100000")
    first = subprocess.Popen(
        command("train", *long, f"--workdir={tmp_path}"), cwd=ROOT, env=environment(cache)
    )
    while len(losses(tmp_path)) < 2:
        assert first.poll() is None
        time.sleep(0.05)
    second = run("train", *long, f"--workdir={tmp_path}", cache=cache)
    assert second.returncode == 64
    words = " ".join(second.stderr.split())
    assert f"in use by process {first.pid} on {socket.gethostname()}" in words
    first.send_signal(signal.SIGTERM)
    assert first.wait(1200) == 75
    reached = len(losses(tmp_path))
    resumed = stop_after(reached + 2, signal.SIGTERM, *long, cache=cache, workdir=tmp_path)
    assert resumed.returncode == 75
    assert f"going on from {reached}" in resumed.stdout


@pytest.mark.slow
def test_data_workers_change_nothing_after_a_kill(tiny, cache, tmp_path):
    """Another number of workers: the same records in the same order."""
    long = (*tiny, "--config.steps=9")
    undisturbed = killed("before_manifest", 6, *long, cache=cache, workdir=tmp_path)
    done = run("train", *long, "--config.data.workers=2", f"--workdir={tmp_path}", cache=cache)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path)[: len(undisturbed)] == undisturbed


@pytest.mark.slow
def test_the_same_weights_on_other_meshes(tiny, cache, tmp_path):
    """Saved on eight devices with the experts over the rows, resumed on one, two and four."""
    wide = (*tiny, "--config.routing.num_experts=4", "--config.checkpoint.keep=9")
    arguments = (*wide, "--config.mesh.data=4", "--config.mesh.model=2", "--config.steps=3")
    done = run("train", *arguments, f"--workdir={tmp_path}", cache=cache, **devices(8))
    assert done.returncode == 0, done.stderr
    meta = json.loads((tmp_path / "checkpoints" / "3" / "manifest.json").read_text())["manifest"]
    assert meta["mesh"] == {"replica": 1, "data": 4, "model": 2}
    experts = [leaf for leaf in meta["leaves"].values() if "expert" in (leaf["axes"] or ())]
    assert experts
    assert any(["data"] in leaf["partition"] for leaf in experts)
    for step, count in enumerate((1, 2, 4), start=4):
        on = (*wide, f"--config.steps={step}", f"--config.mesh.data={count}")
        unrolled = () if count != 2 else ("--config.model.scan_layers=false",)
        more = run("train", *on, *unrolled, f"--workdir={tmp_path}", cache=cache, **devices(count))
        assert more.returncode == 0, more.stderr
        assert f"going on from {step - 1}" in more.stdout
        assert "mesh.data" in more.stdout


def devices(count: int) -> dict[str, str]:
    return {"XLA_FLAGS": flags(count)}
