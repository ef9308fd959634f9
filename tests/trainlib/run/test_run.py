"""What loops do around their steps: late metrics, the abort, stop requests, resume rules."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from trainlib.config import COMMON, check_common, from_schema, override
from trainlib.errors import ConfigError, NumericAbort
from trainlib.model.weights import Abstract
from trainlib.run.interrupt import StopRequest
from trainlib.run.metric_writers import Writers
from trainlib.run.progress import Progress
from trainlib.run.recorder import Recorder
from trainlib.run.resume import check_resume, checkpoint_meta
from trainlib.run.workdir import agree_on_workdir, check_best, open_workdir
from trainlib.step import train_state as state_lib


def sums(loss, skipped=0, in_row=0):
    values = {"loss": loss, "skipped": skipped, "skipped_in_row": in_row}
    return {name: (np.float32(value), np.float32(1)) for name, value in values.items()}


@pytest.fixture
def config():
    return from_schema(COMMON)


def recorder(config, workdir):
    progress = Progress(10, stream=io.StringIO())
    writers = Writers(workdir, tensorboard=False)
    return Recorder(config, lambda step: 0.1 * step, progress, writers)


def written(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_written_one_step_late_with_their_rate(config, tmp_path):
    record = recorder(config, tmp_path)
    record.record(1, sums(3.0))
    assert written(tmp_path) == []
    record.record(2, sums(2.0))
    record.flush()
    record.flush()
    assert [(r["step"], r["loss"]) for r in written(tmp_path)] == [(1, 3.0), (2, 2.0)]
    assert [r["learning_rate"] for r in written(tmp_path)] == [0.0, 0.1]


def test_data_is_waited_for_only_once_the_recorded_step_has_ended(config, tmp_path):
    ended = threading.Event()

    class OnDevice(np.ndarray):
        def block_until_ready(self):
            ended.wait(30)
            return self

    record = recorder(config, tmp_path)
    values = {n: tuple(v[None].view(OnDevice) for v in pair) for n, pair in sums(1.0).items()}
    record.record(1, values)
    assert record._progress._devices.idle(0.0) == 0.0
    ended.set()
    deadline = time.monotonic() + 240
    while not record._progress._devices.idle(0.0):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_skipped_update_does_not_move_the_rate(config, tmp_path):
    record = recorder(config, tmp_path)
    for number, (skipped, in_row) in enumerate([(0, 0), (1, 1), (1, 0), (1, 0)], start=1):
        record.record(number, sums(1.0, skipped, in_row))
    record.flush()
    rates = [r["learning_rate"] for r in written(tmp_path)]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.1, 0.2])


def test_too_many_bad_updates_in_a_row_stop_the_run(config, tmp_path):
    override(config, "max_skipped_steps", 2, "test")
    record = recorder(config, tmp_path)
    for number in (1, 2, 3):
        record.record(number, sums(float("nan"), number, number))
    with pytest.raises(NumericAbort, match="3 steps in a row, up to step 3"):
        record.flush()
    assert [r["loss"] for r in written(tmp_path)] == ["NaN"] * 3


def test_a_resumed_run_may_change_lengths_but_not_meanings(config):
    position = {"next_batch": 5, "records": 10, "digest": "x", "batch_size": 128, "seed": 0}
    meta = checkpoint_meta(config, position)
    override(config, "steps", 2000, "test")
    found = check_resume(meta, config, ("seed", "mesh."), position | {"digest": "y"})
    assert found[0] == "steps: 1000 -> 2000"
    assert "data set" in found[1]
    override(config, "mesh.data", 4, "test")
    with pytest.raises(ConfigError, match=r"mesh\.data: -1 -> 4"):
        check_resume(meta, config, ("seed", "mesh."), position)


def test_a_run_from_before_a_key_was_there_goes_on(config):
    position = {"next_batch": 5, "records": 10, "digest": "x", "batch_size": 128, "seed": 0}
    meta = checkpoint_meta(config, position)
    del meta["config"]["mesh.data"]
    found = check_resume(meta, config, ("mesh.",), position)
    assert found == ["mesh.data: None -> -1"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("steps", 0, "a whole number from 1"),
        ("eval_every", -1, "from 1, or 0 for only at the end"),
        ("batch_size", 100, "8 devices. Nearest: 96"),
        ("microbatches", 3, "8 devices x 3 microbatches. Nearest: 120"),
        ("eval_batch_size", 12, "Nearest: 16"),
    ],
)
def test_common_keys_are_checked(config, key, value, words):
    def check():
        override(config, key, value, "test")
        check_common(config, 8)

    with pytest.raises(ConfigError, match=words):
        check()


def test_the_first_signal_asks_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_leaves_at_once():
    code = (
        "import os, signal, time\n"
        "from trainlib.run.interrupt import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(600)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 75
    assert "SIGTERM again" in done.stderr


def test_a_signal_before_the_first_step_leaves_with_75():
    code = (
        "import os, signal, time\n"
        "from trainlib.run.interrupt import StopRequest, leave_until_saving\n"
        "leave_until_saving()\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop.requested\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(600)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 75
    assert "SIGTERM: leaving" in done.stderr


@pytest.mark.parametrize(("best", "stay"), [("part/a/cross_entropy", 2), ("score/mean", 3)])
def test_the_best_loss_is_the_smallest_and_the_best_score_the_largest(config, tmp_path, best, stay):
    config.checkpoint.update(best=best, keep=1)
    check_best(config, ["accuracy", best])
    with pytest.raises(ConfigError, match=f"Did you mean .{best}."):
        check_best(config, ["accuracy", f"{best}x"])
    checkpoints = open_workdir(config, tmp_path, Abstract(None, {}, {}))
    state = state_lib.TrainState(
        np.int32(0), {"w": np.ones(1, np.float32)}, {}, (), {}, np.int32(0)
    )
    for step, value in enumerate([2.0, 1.0, 3.0, 2.0], start=1):
        checkpoints.save(step, state, {}, {best: value})
    checkpoints.close()
    assert checkpoints.steps() == [stay, 4]


def test_a_workdir_stays_held_while_its_run_looks_into_it(config, tmp_path):
    checkpoints = open_workdir(config, tmp_path, Abstract(None, {}, {}))
    agree_on_workdir(tmp_path, checkpoints)
    code = (
        "import sys; from pathlib import Path\n"
        "from trainlib.checkpoint.workdir_lock import WorkdirLock\n"
        "WorkdirLock(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert f"in use by process {os.getpid()}" in refused.stderr
    checkpoints.close()
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
