"""Anchors against loops, and those that torchvision prints."""

import math

import numpy as np
import pytest

from vitattn.detection.geometry.anchors import anchors, level_anchors
from vitattn.models.retinanet.config import RetinaNetConfig


def test_the_published_numbers_of_anchors():
    assert len(anchors(RetinaNetConfig(), (640, 640))) == 51_150
    assert len(anchors(RetinaNetConfig(num_scales=3), (640, 640))) == 76_725
    assert len(anchors(RetinaNetConfig(), (1024, 1024))) == 130_944


def test_centred_anchors_by_a_loop():
    config, size = RetinaNetConfig(num_scales=3, max_level=5, anchor_scale=3.0), (64, 96)
    expected = []
    for level in (3, 4, 5):
        stride = 2**level
        for row in range(size[0] // stride):
            for column in range(size[1] // stride):
                for scale in range(3):
                    for ratio in config.aspect_ratios:
                        side = 3.0 * stride * 2 ** (scale / 3)
                        h, w = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        y, x = (row + 0.5) * stride, (column + 0.5) * stride
                        expected.append((y - h / 2, x - w / 2, y + h / 2, x + w / 2))
    every = anchors(config, size)
    assert every.dtype == np.float32
    assert every.shape == (len(expected), 4)
    np.testing.assert_allclose(every, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(
        every, np.concatenate([level.reshape(-1, 4) for level in level_anchors(config, size)])
    )


def test_anchors_of_torchvision():
    """Cells as its AnchorGenerator prints them for sizes 32, 40, 50 and ratios 0.5, 1, 2 (height
    over width): (x0, y0, x1, y1) = -23, -11, 23, 11 and so on; centres at k * stride."""
    config = RetinaNetConfig(num_scales=3, aspect_ratios=(2.0, 1.0, 0.5), anchors="torchvision")
    first, second = level_anchors(config, (128, 256))[:2]
    assert first.shape == (16, 32, 9, 4)
    halves = [(11, 23), (14, 28), (18, 35), (16, 16), (20, 20), (25, 25)]
    halves += [(23, 11), (28, 14), (35, 18)]  # half height, half width
    expected = [(-y, -x, y, x) for y, x in halves]
    np.testing.assert_array_equal(first[0, 0], expected)
    np.testing.assert_array_equal(first[3, 5], np.asarray(expected) + [3 * 8, 5 * 8, 3 * 8, 5 * 8])
    # 64 * 2^(1/3) = 80.6 is cut to 80, 101.6 to 101; 101 / 2 = 50.5 is rounded to even.
    np.testing.assert_array_equal(second[0, 0, 3:6, 2], [32, 40, 50])


def test_anchors_are_kept_and_cannot_be_written():
    assert anchors(RetinaNetConfig(), (128, 128)) is anchors(RetinaNetConfig(), (128, 128))
    with pytest.raises(ValueError, match="read-only"):
        anchors(RetinaNetConfig(), (128, 128))[0] = 0
