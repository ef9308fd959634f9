"""Boxes of another form are told from right ones, and right ones are never taken for them."""

import numpy as np
import pytest

from vitattn.detection.annotations.shape_of_boxes import doubt

FORMS = {
    "corners": lambda x, y, w, h, wide, high: (x, y, x + w, y + h),
    "swapped": lambda x, y, w, h, wide, high: (y, x, h, w),
    "centres": lambda x, y, w, h, wide, high: (x + w / 2, y + h / 2, w, h),
    "fractions": lambda x, y, w, h, wide, high: (x / wide, y / high, w / wide, h / high),
    "misfit": lambda x, y, w, h, wide, high: (3 * x, 3 * y, 3 * w, 3 * h),
}


def right(rng, count, least=0.05, most=0.9):
    """Right boxes f64 [count, 4] of images of many sizes, i32 [count, 2], height and width."""
    sizes = rng.integers(60, 1000, (count, 2))
    sides = sizes[:, ::-1] * rng.uniform(least, most, (count, 2))
    corners = (sizes[:, ::-1] - sides) * rng.random((count, 2))
    return np.concatenate([corners, sides], -1), sizes.astype(np.int32)


@pytest.mark.parametrize("seed", range(30))
def test_right_boxes_are_not_doubted(seed):
    rng = np.random.default_rng(seed)
    boxes, sizes = right(rng, int(rng.integers(1, 400)))
    assert doubt(boxes, sizes) is None
    assert doubt(np.rint(boxes), sizes) is None
    few = rng.random(len(boxes)) < 0.02
    boxes[few, :2] += 30  # some reach over the edge
    assert doubt(boxes, sizes) is None


def test_one_large_object_in_each_image_is_not_doubted():
    """Then the third number is larger than the first, as in corners."""
    boxes, sizes = right(np.random.default_rng(0), 500, least=0.7, most=1.0)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert doubt(boxes, sizes) is None


def test_small_things_are_not_fractions():
    boxes = np.ones((50, 4)) * [0.0, 1.0, 1.0, 1.0]
    assert doubt(boxes, np.full((50, 2), 100, np.int32)) is None


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("count", [30, 300])
def test_another_form_is_named(name, count):
    rng = np.random.default_rng(count)
    boxes, sizes = right(rng, count)
    form = np.stack(FORMS[name](*boxes.T, *sizes[:, ::-1].T), -1)
    found = doubt(form, sizes)
    assert found is not None
    assert found.trap == name
    assert f"{count:,}" in found.figures


def test_without_sizes_only_fractions_can_be_told():
    rng = np.random.default_rng(0)
    boxes, sizes = right(rng, 100)
    unknown = np.zeros_like(sizes)
    for name, form in FORMS.items():
        found = doubt(np.stack(form(*boxes.T, *sizes[:, ::-1].T), -1), unknown)
        assert (found is not None) is (name == "fractions"), name


def test_single_mistakes_are_no_form():
    boxes, sizes = right(np.random.default_rng(0), 4)
    boxes[:2, :2] = sizes[:2, ::-1] - 5
    assert doubt(boxes, sizes) is None
    assert doubt(np.zeros((0, 4)), np.zeros((0, 2), np.int32)) is None
