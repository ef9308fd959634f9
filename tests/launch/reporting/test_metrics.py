"""Columns of metrics, and curves that are thinned."""

from __future__ import annotations

import numpy as np
import pytest

from launch.reporting import metrics
from launch.reporting.metrics import Column, Metrics, rounded, thin


def column(values, steps=None):
    made = Column()
    for step, value in zip(steps or range(1, len(values) + 1), values, strict=True):
        made.add(step, value)
    return made


def test_few_points_stay_as_they_are():
    found = thin(column([3.0, float("nan"), float("inf"), 1.0], [5, 7, 9, 11]), 4)
    assert found.exact
    assert found.steps.tolist() == [5, 7, 9, 11]
    assert rounded(found.means) == [3, None, None, 1]
    assert found.bad == [7, 9]


@pytest.mark.parametrize("most", [2, 7, 40])
def test_many_points_become_means_with_their_range(most):
    """Against a loop over ranges of equally many steps."""
    rng = np.random.default_rng(0)
    steps = np.flatnonzero(rng.random(500) < 0.6) + 10
    values = rng.normal(size=len(steps))
    values[rng.random(len(steps)) < 0.1] = np.nan
    found = thin(column(values.tolist(), steps.tolist()), most)
    assert not found.exact
    assert len(found.steps) <= most
    number = np.minimum((steps - steps[0]) * most // (steps[-1] - steps[0]), most - 1)
    for at, part in enumerate(np.unique(number)):
        inside = values[number == part]
        assert found.steps[at] == steps[number == part][-1]
        np.testing.assert_allclose(found.means[at], np.nanmean(inside))
        assert (found.low[at], found.high[at]) == (np.nanmin(inside), np.nanmax(inside))


def test_a_range_without_a_finite_value_is_a_gap():
    found = thin(column([1.0, 1.0, float("nan"), float("nan"), 2.0, 2.0]), 3)
    assert rounded(found.means) == [1, None, 2]


def test_steps_that_go_back_keep_their_order():
    found = thin(column([1.0, 2.0, 3.0, 4.0, 5.0], [1, 9, 2, 3, 10]), 2)
    assert found.means.tolist() == [1.0, 3.5]


def test_records_become_columns_and_alerts():
    found = Metrics()
    found.add({"step": 1, "kind": "train", "loss": 2, "note": "x", "flag": True})
    found.add({"step": 2, "loss": float("nan")})
    found.add({"step": 2, "kind": "alert", "alert": "collapse"})
    assert list(found.columns) == ["train"]
    assert found.of("train")["loss"].steps.tolist() == [1, 2]
    assert list(found.of("train")) == ["loss"]
    assert found.alerts == [{"step": 2, "kind": "alert", "alert": "collapse"}]


def test_a_file_of_endless_names_is_bounded(monkeypatch):
    monkeypatch.setattr(metrics, "MOST_COLUMNS", 3)
    found = Metrics()
    found.add({"step": 1, "kind": "train", **{f"name {n}": 1.0 for n in range(10)}})
    assert len(found.of("train")) == 3
    assert found.left_out == 7
