"""Random erasing: its share of the images, areas, aspects and places, and what is written."""

import numpy as np
import pytest

from vitattn.augmentation.erasing import Erasing

MEAN, STD = (0.2, 0.4, 0.6), (0.1, 0.2, 0.5)
AREA, ASPECT = (0.02, 0.4), (0.3, 3.3)


def windows(count, height=96, width=128, probability=1.0, area=AREA, aspect=ASPECT):
    rng = np.random.default_rng(3)
    erasing = Erasing(probability, area, aspect, "constant")
    return [erasing.window(height, width, rng) for _ in range(count)]


def test_the_probability():
    erased = sum(window is not None for window in windows(4000, probability=0.25))
    assert abs(erased - 1000) < 165  # six deviations


def test_areas_and_aspects_have_their_ranges_and_distributions():
    found = windows(4000, area=(0.02, 0.25))  # all of which fit, at 0.3 to 3.3
    top, left, bottom, right = np.array(found, float).T
    area = (bottom - top) * (right - left) / (96 * 128)
    aspect = (bottom - top) / (right - left)
    # Sides are whole pixels: the least is 96 * 128 * 0.02 = 246, at an aspect of 0.3 8.6 x 28.6.
    assert 0.018 < area.min() < 0.024
    assert 0.24 < area.max() < 0.26
    assert abs(area.mean() - 0.135) < 0.007  # uniform: deviation 0.066 / sqrt(4000), six of them
    assert 0.27 < aspect.min() < 0.33
    assert 3.0 < aspect.max() < 3.7
    # Log-uniform: the mean logarithm is that of the geometric mean of the ends, 0.995.
    assert abs(np.log(aspect).mean() - np.log(0.995)) < 0.07


def test_places_are_uniform_where_the_rectangle_fits():
    top, left, bottom, right = np.array(windows(3000), float).T
    assert top.min() == left.min() == 0
    assert bottom.max() == 96
    assert right.max() == 128
    free = 128 - (right - left)
    part = left[free > 40] / free[free > 40]
    counts, _ = np.histogram(part, 4, (0, 1))
    assert counts.max() - counts.min() < 6 * np.sqrt(2 * len(part) * 0.25 * 0.75)


def test_what_never_fits_erases_nothing():
    assert set(windows(50, area=(0.9, 0.9), aspect=(3.0, 3.0))) == {None}
    whole = windows(5, area=(1.0, 1.0), aspect=(0.75, 0.75))  # height over width of 96 x 128
    assert set(whole) == {(0, 0, 96, 128)}
    assert all(w is not None for w in windows(50, 1, 1, area=(0.01, 0.02)))


@pytest.mark.parametrize("fill", ["pixel", "constant"])
def test_only_the_rectangle_is_written(fill):
    erasing = Erasing(1.0, AREA, ASPECT, fill)
    image = np.full((64, 48, 3), 7.0, np.float32)
    window = erasing.window(64, 48, np.random.default_rng(2))
    erasing.apply(image, np.random.default_rng(2), MEAN, STD)
    assert window is not None
    top, left, bottom, right = window
    inside = image[top:bottom, left:right]
    outside = np.ones((64, 48), bool)
    outside[top:bottom, left:right] = False
    assert (image[outside] == 7).all()
    if fill == "constant":
        assert (inside == 0).all(), "the mean colour"
        return
    levels = inside * np.array(STD) + MEAN  # uniform in 0..1
    assert levels.min() >= -1e-6
    assert levels.max() <= 1 + 1e-6
    assert np.abs(levels.mean((0, 1)) - 0.5).max() < 6 * 0.289 / np.sqrt(inside[..., 0].size)
    assert len(np.unique(inside[..., 0])) > 0.99 * inside[..., 0].size, "each pixel is drawn"


def test_an_image_that_is_not_chosen_stays():
    image = np.ones((8, 8, 3), np.float32)
    Erasing(0.0, AREA, ASPECT, "pixel").apply(image, np.random.default_rng(0), MEAN, STD)
    assert (image == 1).all()
