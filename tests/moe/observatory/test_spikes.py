"""Spikes of the loss, and the router that moved before them, on series made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe.observatory.spikes import first_mover, loss_bound

NAMES = {
    layer: {figure: f"{layer}/{figure}" for figure in ("grad_norm", "entropy")}
    for layer in ("encoder.0", "encoder.1", "decoder.0")
}


def records(**changes: list[float]) -> list[dict[str, float]]:
    """Twenty records of quiet routers; `encoder.0/entropy` and such replace the last values."""
    rng = np.random.default_rng(0)
    series = {
        name: list(1 + 0.02 * rng.normal(size=20))
        for figures in NAMES.values()
        for name in figures.values()
    }
    for name, values in changes.items():
        series[name][20 - len(values) :] = values
    return [{name: values[i] for name, values in series.items()} for i in range(20)]


def test_a_loss_is_a_spike_above_its_usual_spread():
    losses = [2.0, 2.1, 1.9, 2.0, 2.2, 1.8]
    spread = 1.4826 * 0.1  # the median of 0, .1, .1, 0, .2, .2
    assert loss_bound(losses, 6) == pytest.approx(2.0 + 6 * spread)
    assert loss_bound([*losses, math.nan], 6) == loss_bound(losses, 6)
    assert loss_bound([2.0] * 20, 6) == pytest.approx(2.0 + 6 * 0.05)  # a least spread
    assert loss_bound([200.0] * 20, 6) == pytest.approx(200 + 6 * 0.02 * 200)


def test_no_loss_is_a_spike_where_nothing_is_known_or_asked():
    assert loss_bound([2.0] * 4, 6) == math.inf
    assert loss_bound([2.0] * 20, 0) == math.inf


def test_quiet_routers_have_not_moved():
    assert first_mover(records(), NAMES) is None
    assert first_mover(records()[:5], NAMES) is None


@pytest.mark.parametrize("layer", NAMES)
def test_the_router_that_moved_first_is_named(layer):
    others = {f"{name}/grad_norm": [30.0, 40.0] for name in NAMES if name != layer}
    mover = first_mover(records(**others, **{f"{layer}/entropy": [0.7, 0.5, 0.4, 0.2]}), NAMES)
    assert mover is not None
    assert (mover.where, mover.figure, mover.record, mover.now) == (layer, "entropy", 16, 0.2)
    assert mover.before == pytest.approx(1, abs=0.02)


def test_of_routers_that_moved_together_the_farthest_is_named():
    changes = {"encoder.0/grad_norm": [3.0], "decoder.0/grad_norm": [9.0]}
    mover = first_mover(records(**changes), NAMES)
    assert mover is not None
    assert mover.where == "decoder.0"


def test_one_that_came_back_has_not_moved_and_one_that_broke_has():
    back = {"encoder.0/grad_norm": [9.0, 9.0, 1.0]}
    assert first_mover(records(**back), NAMES) is None
    mover = first_mover(records(**back, **{"encoder.1/entropy": [math.nan]}), NAMES)
    assert mover is not None
    assert mover.where == "encoder.1"


def test_what_was_seen_before_is_no_move():
    """Three of five values agree, so that the deviation of most of them is next to nothing."""
    values = {"encoder.0/entropy": [0.42, 0.2, 0.42, 0.43, 0.63, 0.62]}
    names = {"encoder.0": {"entropy": "encoder.0/entropy"}}
    series = [{name: v[i] for name, v in values.items()} for i in range(6)]
    assert first_mover(series, names) is None
    series[-1]["encoder.0/entropy"] = 0.7
    mover = first_mover(series, names)
    assert mover is not None
    assert mover.record == 5
