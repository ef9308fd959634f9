"""The colour distortion against the definition of HSV and plain formulas."""

import colorsys

import numpy as np
import pytest

from vitattn.images import colour

GREYS = [(0, 0, 0), (9, 9, 9), (255, 255, 255)]
CORNERS = [(a, b, c) for a in (7, 255) for b in (7, 255) for c in (7, 255)]


def planes(count=400):
    """Every order and every tie of the three channels."""
    random = np.random.default_rng(0).uniform(0, 255, (count, 3))
    levels = np.concatenate([GREYS, CORNERS, random]).astype(np.float32)
    return np.ascontiguousarray(levels.T)[:, None]


@pytest.mark.parametrize(("turn", "factor"), [(0.1, 0.7), (-0.2, 1.5), (0.0, 1.0), (0.2, 0.5)])
def test_hue_and_saturation_follow_the_definition_of_hsv(turn, factor):
    found, before = planes(), planes()
    colour.turn_hue(found, turn, factor)
    for new, old in zip(found[:, 0].T, before[:, 0].T / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*old.astype(float))
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, min(1, saturation * factor), value)
        np.testing.assert_allclose(new, np.multiply(expected, 255), atol=1e-3)


def test_brightness_and_contrast_follow_their_formulas():
    found, before = planes(), planes().astype(float)
    colour.brighten(found, 0.1)
    np.testing.assert_allclose(found, np.clip(before + 25.5, 0, 255), atol=1e-4)
    found = planes()
    colour.stretch_contrast(found, 1.4)
    mean = before.mean((1, 2), keepdims=True)
    expected = np.clip((before - mean) * 1.4 + mean, 0, 255)
    np.testing.assert_allclose(found, expected, atol=0.4 * 2**-9 + 1e-4)  # the mean is rounded


class Draws:
    """A generator that notes what is asked of it, and returns the upper ends."""

    def __init__(self, first):
        self.first, self.asked = first, []

    def uniform(self, low, high):
        self.asked.append((round(low, 4), round(high, 4)))
        return high

    def random(self):
        return 0.1 if self.first else 0.9


def test_the_order_is_drawn_and_changes_the_result():
    results = []
    for hue_first in (True, False):
        draws, found, expected = Draws(hue_first), planes(), planes()
        colour.distort(found, draws)  # type: ignore[arg-type]
        assert draws.asked == [(-0.1255, 0.1255), (0.5, 1.5), (-0.2, 0.2), (0.5, 1.5)]
        colour.brighten(expected, 32 / 255)
        steps = [lambda p: colour.turn_hue(p, 0.2, 1.5), lambda p: colour.stretch_contrast(p, 1.5)]
        for step in steps if hue_first else steps[::-1]:
            step(expected)
        np.testing.assert_array_equal(found, expected)
        results.append(found)
    assert np.abs(results[0] - results[1]).max() > 1
