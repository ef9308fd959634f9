"""A map of attention laid over the image: the image dimmed and grey, coloured where it is attended
to.

H W image in pixels, h w map of a layer, k the whole factor by which a small image is enlarged.
"""

from __future__ import annotations

import numpy as np

_DIMMED = 0.55  # brightness of the image below a map
_SIDE = 240  # pixels of the longer side, to which small images are enlarged before colouring
# "inferno" of matplotlib (S. van der Walt and N. Smith, CC0) at nine equal distances: brighter the
# more it stands for, whatever colours one sees.
_COLOURS = np.array(
    [
        [0, 0, 4],
        [33, 12, 74],
        [87, 16, 110],
        [138, 34, 106],
        [188, 55, 84],
        [228, 90, 49],
        [249, 142, 9],
        [249, 203, 53],
        [252, 255, 164],
    ],
    np.float32,
)


def upsampled(weights: np.ndarray, height: int, width: int) -> np.ndarray:
    """Map [h, w] -> [height, width], each cell over its part of the image, blended in between.

    Linear in between the centres of the cells: unlike cubic it makes no maximum that is not there.
    """
    from PIL import Image

    image = Image.fromarray(np.asarray(weights, np.float32), mode="F")
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def overlay(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The picture of one map on its own scale, from nothing to its largest probability.

    Args:
      image: f32 [H, W, 3] in 0..1.
      weights: f32 [h, w], probabilities.

    Returns:
      f32 [k H, k W, 3] in 0..1.
    """
    height, width = image.shape[:2]
    k = enlarged(height, width)
    fine = upsampled(weights, k * height, k * width)
    share = np.clip(fine / (float(weights.max()) or 1.0), 0, 1)
    grey = np.repeat(np.repeat(image.mean(-1), k, 0), k, 1)[..., None] * _DIMMED
    strength = 0.8 * share[..., None]
    return grey * (1 - strength) + _coloured(0.15 + 0.85 * share) * strength


def enlarged(height: int, width: int) -> int:
    """k, by which an image is enlarged so that its longer side has about `_SIDE` pixels; at least
    1.
    """
    return max(1, round(_SIDE / max(height, width)))


def words(weights: np.ndarray) -> str:
    """The scale of a map [h, w], and how much of its attention lies beyond the border: what is
    missing to 1.
    """
    beyond = 1 - float(weights.sum())
    note = f"\n{100 * beyond:.0f} % beyond the border" if beyond > 0.005 else ""
    return f"to {100 * float(weights.max()):.3g} %{note}"


def _coloured(values: np.ndarray) -> np.ndarray:
    """Values [..] in 0..1 -> colours f32 [.., 3] in 0..1."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, places, channel) for channel in _COLOURS.T]
    return (np.stack(channels, -1) / 255).astype(np.float32)
