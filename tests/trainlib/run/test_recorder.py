"""What a run writes of its steps: late metrics, their rates, the abort."""

import io
import json
import threading
import time

import numpy as np
import pytest

from trainlib.config import COMMON, from_schema, override
from trainlib.errors import NumericAbort
from trainlib.run.metric_writers import Writers
from trainlib.run.progress import Progress
from trainlib.run.recorder import Recorder


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
            ended.wait(1200)
            return self

    record = recorder(config, tmp_path)
    values = {n: tuple(v[None].view(OnDevice) for v in pair) for n, pair in sums(1.0).items()}
    record.record(1, values)
    assert record._progress._devices.idle(0.0) == 0.0
    ended.set()
    deadline = time.monotonic() + 1200
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
