"""Anchors and boxes against plain loops and formulas in float64."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from vitattn.detection.geometry.anchors import anchors, level_anchors
from vitattn.detection.geometry.boxes import area, clip, decode, encode, iou


@dataclasses.dataclass(frozen=True)
class Config:
    min_level: int = 3
    max_level: int = 7
    num_scales: int = 2
    aspect_ratios: tuple[float, ...] = (1.0, 2.0, 0.5)
    anchor_scale: float = 4.0
    anchors: str = "centred"


def random_boxes(rng, *shape, size=200.0):
    low = rng.uniform(0, size, (*shape, 2))
    return np.concatenate((low, low + rng.uniform(0.5, size / 2, (*shape, 2))), -1)


def test_the_published_numbers_of_anchors():
    assert len(anchors(Config(), (640, 640))) == 51_150
    assert len(anchors(Config(num_scales=3), (640, 640))) == 76_725
    assert len(anchors(Config(), (1024, 1024))) == 130_944


def test_centred_anchors_by_a_loop():
    config, size = Config(num_scales=3, max_level=5, anchor_scale=3.0), (64, 96)
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
    config = Config(num_scales=3, aspect_ratios=(2.0, 1.0, 0.5), anchors="torchvision")
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
    assert anchors(Config(), (128, 128)) is anchors(Config(), (128, 128))
    with pytest.raises(ValueError, match="read-only"):
        anchors(Config(), (128, 128))[0] = 0


def test_overlaps_by_a_loop():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 7), random_boxes(rng, 9)
    a[0] = b[0]
    a[1] = (50, 50, 50, 80)  # no height
    a[2] = (60, 60, 40, 40)  # edges the wrong way round
    b[1] = a[1]
    expected = np.zeros((7, 9))
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            height = max(0.0, min(p[2], q[2]) - max(p[0], q[0]))
            width = max(0.0, min(p[3], q[3]) - max(p[1], q[1]))
            areas = [max(0.0, r[2] - r[0]) * max(0.0, r[3] - r[1]) for r in (p, q)]
            union = sum(areas) - height * width
            expected[i, j] = height * width / union if union else 0.0
    np.testing.assert_allclose(iou(jnp.float32(a), jnp.float32(b)), expected, atol=1e-5)
    assert expected[0, 0] == 1
    assert not expected[1].any()
    np.testing.assert_allclose(area(jnp.float32(a))[1:3], 0)


def test_offsets_lead_back():
    rng = np.random.default_rng(1)
    boxes, around = jnp.float32(random_boxes(rng, 50)), jnp.float32(random_boxes(rng, 50))
    np.testing.assert_allclose(decode(encode(boxes, around), around), boxes, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(encode(around, around), 0, atol=1e-5)


def test_offsets_are_those_of_the_formula():
    anchor, box = jnp.float32([10, 20, 30, 60]), jnp.float32([15, 20, 55, 40])  # 20 x 40, 40 x 20
    np.testing.assert_allclose(
        encode(box, anchor), [15 / 20, -10 / 40, math.log(2), -math.log(2)], rtol=1e-6
    )


def test_growth_is_bounded():
    anchor = jnp.float32([0, 0, 16, 16])
    box = decode(jnp.float32([0, 0, 1e4, 100]), anchor)
    np.testing.assert_allclose(box[2:] - box[:2], 1000, rtol=1e-5)
    assert np.isfinite(decode(jnp.float32([0, 0, -1e4, 0]), anchor)).all()


def test_boxes_are_cut_to_the_image():
    boxes = jnp.float32([[-5, -5, 500, 500], [5, 6, 7, 8]])
    np.testing.assert_array_equal(clip(boxes, 100, 200), [[0, 0, 100, 200], [5, 6, 7, 8]])
    sizes = jnp.int32([[100, 200], [6, 300]])
    np.testing.assert_array_equal(
        clip(boxes, sizes[:, 0], sizes[:, 1]), [[0, 0, 100, 200], [5, 6, 6, 8]]
    )
