"""MFU and the shares of a run's time, by hand arithmetic."""

import io
import types

import pytest

from trainlib.run import goodput
from trainlib.run.progress import Progress


def devices(kind, count):
    return [types.SimpleNamespace(device_kind=kind)] * count


def run(peak=None):
    """A run of 100 s: 20 to the end of the first step, 40 steps of 1.5 s of which a third waits
    for data, 12 s of evaluation and 8 s of saving.
    """
    clock = [0.0]
    stream = io.StringIO()
    progress = Progress(41, 0, 30, stream=stream, clock=lambda: clock[0], peak=peak, began=-5.0)
    with progress.waiting():
        clock[0] += 3
    clock[0] += 12
    progress.update(1)
    for step in range(2, 42):
        with progress.waiting():
            clock[0] += 0.5
        clock[0] += 1.0
        if step == 41:
            with progress.pause("evaluating"):
                clock[0] += 12
            with progress.pause("saving"):
                clock[0] += 8
        progress.update(step)
    return progress, stream


def test_shares_of_a_run():
    progress, _ = run()
    assert progress.seconds() == 100
    found = goodput.values(progress)
    assert found.pop("examples_per_second") == pytest.approx(30 / 1.5)
    assert found.pop("seconds") == 100
    assert found == pytest.approx(
        {
            "steps": 0.40,
            "input_wait": 0.20,
            "evaluation": 0.12,
            "checkpoint_stall": 0.08,
            "start": 0.20,
        }
    )


def test_mfu_is_model_flops_over_time_over_peak():
    # 8 x 275e12 / (3 x 1e12) = 733.33 examples/s would be an MFU of 1; the run has 20.
    peak = goodput.peak_rate(lambda: 1e12, devices("TPU v4", 8))
    assert peak == pytest.approx(8 * 275 / 3)
    progress, stream = run(peak)
    assert goodput.values(progress)["mfu"] == pytest.approx(20 * 3 / (8 * 275))
    assert "mfu 3%" in stream.getvalue().splitlines()[-1]
    rows = goodput.rows(progress, devices("TPU v4", 8))
    assert rows["MFU"] == "2.7 % of 8 x 275 TFLOP/s (TPU v4)"
    assert rows["time went to"] == "steps 40 %, data 20 %, saves 8 %, evaluation 12 %, start 20 %"


def test_an_unknown_chip_says_so_and_counts_no_flops():
    def never():
        raise AssertionError

    assert goodput.peak_rate(never, devices("cpu", 2)) is None
    progress, stream = run()
    assert "mfu" not in goodput.values(progress)
    assert "mfu" not in stream.getvalue()
    assert "no peak figure for a cpu" in goodput.rows(progress, devices("cpu", 2))["MFU"]


def test_a_run_of_one_step_has_no_rate():
    clock = [0.0]
    progress = Progress(1, stream=io.StringIO(), clock=lambda: clock[0], peak=10.0)
    clock[0] += 4
    progress.update(1)
    assert goodput.values(progress)["start"] == 1.0
    assert "mfu" not in goodput.values(progress)
    assert "fewer than two steps" in goodput.rows(progress, devices("TPU v4", 8))["MFU"]
