"""Intervals of time between checkpoints, over a run that was started again."""

from __future__ import annotations

import pytest

from launch.reporting import goodput
from launch.reporting.metrics import Metrics
from tests.launch.reporting import fixtures


def records(*pairs):
    found = Metrics()
    for step, values in pairs:
        found.add({"step": step, "kind": "goodput", **values})
    return found


def test_a_run_that_was_started_again_goes_on():
    """Twice 40 and three times 20 steps of a tenth of a second, after starts of 10 and 12."""
    made = records(*((step, fixtures.goodput(step, 100)) for step in (20, 40, 60, 80, 100)))
    found = goodput.intervals(made, batch_size=8)
    clock = [[0, 0], [20, 12], [40, 14], [60, 28], [80, 30], [100, 32]]
    assert [[s, pytest.approx(t)] for s, t in clock] == found["clock"]
    assert found["starts"] == [0, pytest.approx(14)]
    assert found["parts"][0] == [pytest.approx(2), 0, 0, 0, pytest.approx(10)]
    assert found["parts"][3] == [pytest.approx(2), 0, 0, 0, pytest.approx(0, abs=1e-6)]
    assert found["rate"] == [pytest.approx(80)] * 5
    assert found["mfu"] == [pytest.approx(0.5)] * 5


def test_many_records_are_put_together():
    parts = {"steps": 0.5, "start": 0.0, "evaluation": 0.5}
    made = records(*((n, parts | {"seconds": float(n)}) for n in range(1, 1_001)))
    found = goodput.intervals(made, batch_size=4)
    assert len(found["parts"]) == goodput.MOST_INTERVALS
    assert found["clock"][-1] == [1_000, 1_000]
    assert found["parts"][7] == [pytest.approx(2.5), 0, 0, pytest.approx(2.5), 0]
    assert found["rate"][7] == pytest.approx(8)


def test_records_without_a_clock_say_nothing():
    assert goodput.intervals(records((1, {"steps": 0.5})), 1) is None
    assert goodput.intervals(records((1, {"steps": 0.5, "seconds": float("nan")})), 1) is None


def test_steps_before_time_was_noted_are_not_counted_as_fast_ones():
    noted = {"steps": 0.5, "start": 0.5, "seconds": 20.0}
    found = goodput.intervals(records((160, {"steps": 0.9}), (180, noted)), batch_size=8)
    assert found["clock"] == [[160, 0], [180, 20]]
    assert found["rate"] == [16]
