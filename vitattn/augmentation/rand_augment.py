"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719): operations drawn anew for each image from a
list of fourteen, all of one magnitude.

M is the magnitude, 0 to 10 as in section 3 of the paper; the operations get M / 10 with a random
sign, the strength s in -1..1. Ranges at a strength of 1 are those of AutoAugment (arXiv 1805.09501,
table 6), turned so that a larger magnitude always changes an image more: in the published code
posterize and solarize change it less, and the factors of colours leave it alone at M = 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vitattn.images.decode import Rgb

MOST = 10.0  # the largest magnitude

Fill = tuple[int, ...]
Operation = Callable[[Image.Image, float, Fill], Image.Image]

_DEGREES = 30.0
_SLOPE = 0.3
_MOVE = 150 / 331  # of a side: AutoAugment moves images of 331 pixels by up to 150
_FACTOR = 0.9  # colours are multiplied by 0.1 to 1.9
_BITS = 4  # of 8, which posterize takes away


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    """Pillow's matrix: of the source of each target pixel."""
    bilinear = Image.Resampling.BILINEAR
    return image.transform(image.size, Image.Transform.AFFINE, matrix, bilinear, fillcolor=fill)


def _moved(image: Image.Image, right: float, down: float, fill: Fill) -> Image.Image:
    """By whole pixels, so that nothing is blurred; what comes from beside the image is `fill`."""
    ground = Image.new("RGB", image.size, fill)
    ground.paste(image, (round(right), round(down)))
    return ground


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, s, fill: enhancer(image).enhance(1 + _FACTOR * s)


# Names and order of listing 1 of the paper.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, s, fill: image,
    "auto_contrast": lambda image, s, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, s, fill: ImageOps.equalize(image),
    "rotate": lambda image, s, fill: image.rotate(
        _DEGREES * s, Image.Resampling.BILINEAR, fillcolor=fill
    ),
    # Levels from the threshold on are inverted.
    "solarize": lambda image, s, fill: ImageOps.solarize(image, 256 - round(256 * abs(s))),
    "color": _enhanced(ImageEnhance.Color),
    "posterize": lambda image, s, fill: ImageOps.posterize(image, 8 - round(_BITS * abs(s))),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, s, fill: _affine(image, (1, _SLOPE * s, 0, 0, 1, 0), fill),
    "shear_y": lambda image, s, fill: _affine(image, (1, 0, 0, _SLOPE * s, 1, 0), fill),
    "translate_x": lambda image, s, fill: _moved(image, -_MOVE * s * image.width, 0, fill),
    "translate_y": lambda image, s, fill: _moved(image, 0, -_MOVE * s * image.height, fill),
}
_NAMES = tuple(OPERATIONS)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """How images are changed.

    Attributes:
      layers: N, operations that an image goes through, one after the other.
      magnitude: M, 0 to 10.
      deviation: standard deviation of the magnitude of each operation, which stays in 0 to 10; 0,
        as in the paper, gives all of them M.
    """

    layers: int
    magnitude: float
    deviation: float = 0.0

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Returns the operations of one image: name and strength in -1..1."""
        drawn = []
        for number in rng.integers(len(_NAMES), size=self.layers):
            spread = self.deviation * rng.standard_normal() if self.deviation else 0.0
            magnitude = min(max(self.magnitude + spread, 0.0), MOST)
            sign = -1.0 if rng.random() < 0.5 else 1.0
            drawn.append((_NAMES[number], sign * magnitude / MOST))
        return drawn

    def apply(self, levels: np.ndarray, rng: np.random.Generator, mean: Rgb) -> np.ndarray:
        """Returns the changed image, uint8 [H, W, 3].

        Args:
          levels: 0 to 255 [H, W, 3], uint8, or float32, which is rounded: the operations are those
            of Pillow on 8 bits.
          rng: source of the draws.
          mean: colour of what moves in from beside the image, in units of the full range.
        """
        image = Image.fromarray(_rounded(levels))
        fill = tuple(round(255 * value) for value in mean)
        for name, strength in self.draw(rng):
            image = OPERATIONS[name](image, strength, fill)
        return np.asarray(image)


def _rounded(levels: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, 3] in rows, as Pillow wants them.

    Levels of training are views of planes; these are copied one by one, in a third of the time.
    """
    if levels.dtype == np.uint8:
        return np.ascontiguousarray(levels)
    whole, rows = np.rint(levels).astype(np.uint8), np.empty(levels.shape, np.uint8)
    for channel in range(3):
        rows[..., channel] = whole[..., channel]
    return rows
