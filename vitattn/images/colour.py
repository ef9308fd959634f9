"""Inception's colour distortion of one image (Szegedy et al. 2014, arXiv 1409.4842), in place.

H W of the image. Images are planes of levels from 0 to 255, float32 [3, W, H] (or [3, H, W]): each
step is a handful of operations on contiguous rows, 3 times as fast as Pillow's look-up tables in
HSV, whose hue has 8 bits.
"""

from __future__ import annotations

import numpy as np

# As the public TensorFlow models distort colours, in units of the full range.
BRIGHTNESS = 32 / 255
SATURATION = (0.5, 1.5)
HUE = 0.2
CONTRAST = (0.5, 1.5)


def distort(planes: np.ndarray, rng: np.random.Generator) -> None:
    """Changes brightness, saturation, hue and contrast at random, in one of Inception's two orders.
    Each stage clips.
    """
    delta = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    factor, turn = rng.uniform(*SATURATION), rng.uniform(-HUE, HUE)
    stretch = rng.uniform(*CONTRAST)
    brighten(planes, delta)
    if rng.random() < 0.5:
        turn_hue(planes, turn, factor)
        stretch_contrast(planes, stretch)
    else:
        stretch_contrast(planes, stretch)
        turn_hue(planes, turn, factor)


def brighten(planes: np.ndarray, delta: float) -> None:
    """Adds `delta` of the full range."""
    planes += np.float32(255 * delta)
    np.clip(planes, 0, 255, out=planes)


def stretch_contrast(planes: np.ndarray, factor: float) -> None:
    """Stretches each channel about its own mean, which is rounded to 1/256 of a level, so that the
    order of its sum does not matter."""
    means = np.rint(256 * planes.mean((1, 2), dtype=np.float64, keepdims=True)) / 256
    planes *= np.float32(factor)
    planes += (means * (1 - factor)).astype(np.float32)
    np.clip(planes, 0, 255, out=planes)


def turn_hue(planes: np.ndarray, turn: float, factor: float) -> None:
    """Turns the hue by `turn` of the circle and multiplies the saturation, as in HSV.

    The value V, the largest channel, stays. The chroma, V less the smallest channel, is V times the
    saturation; hue is counted in circles from red.
    """
    red, green, blue = planes
    upper, lower = np.maximum(green, blue), np.minimum(green, blue)
    value = np.maximum(red, upper)
    middle = np.minimum(red, upper)  # the middle channel, or the smallest where red is that
    chroma = value - np.minimum(middle, lower)
    # The hue is |corner + (middle - lower) / (6 chroma)|. The corner is 0 where red is largest,
    # -1/3 where green is and 2/3 where blue is, less 1 in the first case if blue exceeds green.
    bluish = np.less(green, blue).astype(np.float32)
    hue = np.less(red, upper) * (2 * bluish - np.float32(1 / 3)) - bluish
    middle -= lower
    middle /= np.maximum(chroma, np.float32(1e-6)) * 6
    hue += middle
    np.abs(hue, out=hue)
    chroma *= np.float32(factor)
    np.minimum(chroma, value, out=chroma)  # a saturation of 1 at most
    for channel, peak in zip(planes, (0, 1 / 3, 2 / 3), strict=True):
        # A channel is V up to a sixth of the circle from its own hue, V - chroma beyond a third.
        np.add(hue, np.float32(turn - peak), out=middle)
        np.rint(middle, out=upper)
        middle -= upper
        np.abs(middle, out=middle)
        middle *= 6
        middle -= 1
        np.clip(middle, 0, 1, out=middle)
        middle *= chroma
        np.subtract(value, middle, out=channel)
