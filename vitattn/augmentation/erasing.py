"""Random erasing (Zhong et al. 2017, arXiv 1708.04896): a rectangle of an image is written over."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from vitattn.images.decode import Rgb

FILLS = ("pixel", "constant")
_ATTEMPTS = 10

Window = tuple[int, int, int, int]  # top, left, bottom, right in whole pixels


@dataclasses.dataclass(frozen=True)
class Erasing:
    """What is erased.

    Attributes:
      probability: with which an image loses a rectangle.
      area: least and largest area of it, over that of the image; uniform between them.
      aspect: least and largest height over width; log-uniform between them.
      fill: "pixel" writes levels that are uniform in 0..255, drawn for each pixel and colour
        (RE-R of the paper); "constant" the mean colour (RE-M), which is 0 in a normalised image.
    """

    probability: float
    area: tuple[float, float]
    aspect: tuple[float, float]
    fill: str

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window | None:
        """Returns the rectangle of an image; None where it loses none.

        A rectangle that does not fit is drawn anew, up to ten times. Its place is uniform among
        those where it fits; the algorithm of the paper draws place and form anew together, which
        makes large rectangles rarer than its range of areas says.
        """
        if rng.random() >= self.probability:
            return None
        low, high = (math.log(bound) for bound in self.aspect)
        for _ in range(_ATTEMPTS):
            area = rng.uniform(*self.area) * height * width
            aspect = math.exp(rng.uniform(low, high))
            tall = max(1, round(math.sqrt(area * aspect)))
            wide = max(1, round(math.sqrt(area / aspect)))
            if tall <= height and wide <= width:
                top = int(rng.integers(height - tall + 1))
                left = int(rng.integers(width - wide + 1))
                return top, left, top + tall, left + wide
        return None

    def apply(self, image: np.ndarray, rng: np.random.Generator, mean: Rgb, std: Rgb) -> None:
        """Erases in place.

        Args:
          image: float32 [H, W, 3], normalised by `mean` and `std`.
          rng: source of the draws.
          mean: in units of the full range.
          std: the same.
        """
        height, width, _ = image.shape
        window = self.window(height, width, rng)
        if window is None:
            return
        top, left, bottom, right = window
        erased = image[top:bottom, left:right]
        if self.fill == "constant":
            erased[:] = 0
            return
        levels = rng.random(erased.shape, np.float32)
        erased[:] = (levels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
