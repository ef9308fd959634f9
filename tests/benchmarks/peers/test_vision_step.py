"""The row of the plain residual network: both sides compute the same, or it stops."""

import importlib.util

import numpy as np
import pytest

from benchmarks.peers import vision_step


@pytest.mark.thorough
def test_all_sides_compute_the_same_step():
    if not importlib.util.find_spec("timm"):
        pytest.skip("timm is not installed")
    runs = vision_step.sides(batch=4, pixels=64, classes=5, depth=18)
    assert list(runs) == [vision_step.BARE, vision_step.TRAIN, vision_step.LAST, vision_step.FIRST]
    for run in runs.values():
        assert np.isfinite(run()["loss"])


def test_a_side_that_computes_something_else_stops_the_row():
    expected = {"loss": np.float32(2), "logits": np.ones((2, 3)), "head.bias": np.ones(3)}
    vision_step.check("ours", {"loss": 2.0, "other": 1}, expected)
    with pytest.raises(
        SystemExit, match=r"ours computes another head\.bias .* differ by 1\.0e\+00"
    ):
        vision_step.check("ours", expected | {"head.bias": np.zeros(3)}, expected)
    with pytest.raises(SystemExit, match="another loss"):
        vision_step.check("ours", {"loss": np.nan}, expected)
