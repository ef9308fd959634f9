"""Resizing by products: against a plain sum over taps, against Pillow, and bit for bit against
integers."""

import numpy as np
import pytest
from PIL import Image

from vitattn.images import resample as resampling
from vitattn.images.resample import resample

NOISE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
BOXES = [(0, 0, 120, 90), (3.3, 20.2, 60.7, 71.9), (100.5, 0, 120, 20.25), (40, 40, 41, 41.5)]
SIZES = [(32, 32), (17, 50), (1, 1), (5, 130), (16, 33)]
PILLOW = {"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}
# a smooth picture, as photographs are: noise overshoots everywhere
DOWN, ACROSS = np.mgrid[0:90, 0:120]
SMOOTH = np.stack([DOWN * 2, ACROSS * 2, 250 - DOWN - ACROSS], -1).astype(np.uint8)


def plain(length, first, last, count, kernel):
    """The weights [count, length] of one axis in float64, by the textbook."""
    scale = (last - first) / count
    stretch = max(scale, 1)
    away = np.abs(
        (np.arange(length) + 0.5 - (first + (np.arange(count)[:, None] + 0.5) * scale)) / stretch
    )
    if kernel == "linear":
        weights = np.maximum(1 - away, 0)
    else:
        far = ((2.5 - 0.5 * away) * away - 4) * away + 2
        weights = np.where(away < 1, (1.5 * away - 2.5) * away**2 + 1, np.where(away < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.thorough
@pytest.mark.parametrize("kernel", ["cubic", "linear"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("box", BOXES)
def test_it_is_the_sum_over_taps(box, size, kernel):
    left, top, right, bottom = box
    down, across = (
        plain(90, top, bottom, size[0], kernel),
        plain(120, left, right, size[1], kernel),
    )
    expected = np.clip(np.einsum("yh,xw,hwc->cxy", down, across, NOISE.astype(float)), 0, 255)
    found = resample(NOISE, box, size, kernel)
    assert found.dtype == np.float32
    # Weights of 11 bits: 2^-12 x 255 for each of a few dozen taps, which add up as a random walk.
    assert np.abs(found - expected).max() < 0.6
    mirrored = resample(NOISE, box, size, kernel, mirrored=True)
    np.testing.assert_array_equal(mirrored[:, ::-1], found)


@pytest.mark.parametrize("kernel", ["cubic", "linear"])
@pytest.mark.parametrize("size", [32, (17, 50), (200, 300)])
@pytest.mark.parametrize("box", BOXES)
def test_it_is_pillows_filter_without_its_rounding(box, size, kernel):
    found = resample(SMOOTH, box, size, kernel).transpose(2, 1, 0)
    high, wide = found.shape[:2]
    expected = Image.fromarray(SMOOTH).resize((wide, high), PILLOW[kernel], box=box)
    difference = np.abs(found - np.asarray(expected, float))
    assert difference.max() <= 2
    assert difference.mean() < 0.5


def test_a_flat_picture_stays_flat_and_levels_stay_in_their_range():
    flat = np.full((90, 120, 3), 201, np.uint8)
    assert (resample(flat, BOXES[1], 40) == 201).all()
    found = resample(np.where(NOISE > 127, 255, 0).astype(np.uint8), BOXES[1], 77)
    assert found.min() == 0
    assert found.max() == 255


@pytest.mark.parametrize("box", [*BOXES, (0, 0, 118, 2.5)])
def test_the_sums_are_integers_that_float32_holds(box):
    """So every BLAS gives the same bits: the same numbers in 64-bit integers."""
    left, top, right, bottom = box
    extreme = np.where(np.random.default_rng(1).random((90, 120, 3)) < 0.5, 0, 255).astype(np.uint8)
    down = resampling.taps(top, bottom, 90, 24, "cubic", 14, False)
    across = resampling.taps(left, right, 120, 24, "cubic", 11, False)

    def dense(taps, length):
        weights = np.zeros((24, length), np.int64)
        count = len(taps.weights)
        for pixel, results in zip(taps.pixels, resampling._blocks(24), strict=True):
            weights[results, pixel : pixel + count] = taps.weights[:, results].T
        return weights

    first = np.einsum("yh,hwc->wcy", dense(down, 90), extreme.astype(np.int64))
    between = np.rint(first / 2**10).astype(np.int64)  # to the even sixteenth, as float32 does
    second = np.einsum("xw,wcy->cxy", dense(across, 120), between)
    assert np.abs(first).max() < 2**24
    assert np.abs(second).max() < 2**24
    bound = np.abs(dense(across, 120)).sum(1).max() * np.abs(dense(down, 90)).sum(1).max()
    assert 255 * 16 * bound / 2**14 < 2**24, "no sum on the way is larger either"
    expected = np.clip(second / 2.0**15, 0, 255).astype(np.float32)
    np.testing.assert_array_equal(resample(extreme, box, 24), expected)
