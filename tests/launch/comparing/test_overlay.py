"""The picture of several runs."""

import math

import pytest

from launch.comparing.overlay import draw, smooth
from tests.launch.comparing.fixtures import make
from trainlib.errors import ConfigError, DataError

pytest.importorskip("matplotlib")


def test_smooth_is_a_mean_of_what_was_and_leaves_gaps_out():
    values = [float(n) for n in range(200)]  # 4 points a part
    assert smooth(values)[:5] == [0.0, 0.5, 1.0, 1.5, 2.5]
    assert smooth(values)[199] == 197.5
    values[10] = math.nan
    assert smooth(values)[11] == pytest.approx((8 + 9 + 11) / 3)
    assert smooth([math.inf, 2.0])[1] == 2.0
    assert math.isnan(smooth([math.nan])[0])


def test_a_picture_of_runs_and_of_none(tmp_path):
    one = make(tmp_path / "$a_{1}$", done=30)
    two = make(tmp_path / "b", done=0)
    path = tmp_path / "out.png"
    assert draw([one, two], path) == ["loss", "top1"]
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="--plot"):
        draw([one], tmp_path / "out.nothing")
    with pytest.raises(DataError, match="nothing to draw"):
        draw([two], path)
