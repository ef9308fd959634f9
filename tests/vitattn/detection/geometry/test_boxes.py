"""Overlaps and offsets of boxes against loops and formulas."""

import math

import jax.numpy as jnp
import numpy as np

from vitattn.detection.geometry.boxes import area, clip, decode, encode, iou


def random_boxes(rng, *shape, size=200.0):
    low = rng.uniform(0, size, (*shape, 2))
    return np.concatenate((low, low + rng.uniform(0.5, size / 2, (*shape, 2))), -1)


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
