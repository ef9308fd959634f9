"""Where a picture lies in the image of a network: how it is cut, resized and mirrored, and its
boxes with it.

H W height and width of the network image, h w of the upright picture, both in pixels; M boxes.
Boxes are [M, 4] = (top, left, bottom, right) with continuous edges: a box around one whole pixel is
1 wide. A picture is resized once, from the part that is seen straight to its size in the network
image, and lies at the top left; the rest is zero after normalisation. All random draws come from
the generator that is passed in, so that a picture is augmented alike in any process.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from vitattn.images import augment
from vitattn.images.decode import Picture, Rgb, guarded

# A box that a crop leaves narrower than this, in network pixels, teaches nothing: its picture is
# gone, and the logarithm of its side would outweigh all other boxes in the loss.
LEAST_SIDE = 1.0


class Placement(NamedTuple):
    """The part of a picture that is seen, and what it becomes.

    Attributes:
      part: (top, left, bottom, right) in pixels of the upright picture, not rounded.
      shape: rows and columns that the part becomes, at the top left of the network image.
      mirrored: whether left and right of the part change places.
      upside_down: whether its top and bottom do.
    """

    part: tuple[float, float, float, float]
    shape: tuple[int, int]
    mirrored: bool = False
    upside_down: bool = False

    @property
    def scale(self) -> tuple[float, float]:
        """Network pixels for one pixel of the picture, down and across. They differ by the
        rounding of the shape to whole pixels."""
        top, left, bottom, right = self.part
        return self.shape[0] / (bottom - top), self.shape[1] / (right - left)


def letterbox(picture: tuple[int, int], size: tuple[int, int]) -> Placement:
    """Returns the placement of evaluation: the whole picture, as large as fits, aspect kept.

    Args:
      picture: h, w.
      size: H, W.
    """
    return Placement((0.0, 0.0, float(picture[0]), float(picture[1])), _fitted(picture, size, 1.0))


def jitter(
    picture: tuple[int, int],
    size: tuple[int, int],
    factors: tuple[float, float],
    flip: float,
    flip_vertical: float,
    rng: np.random.Generator,
) -> Placement:
    """Returns a random placement of training: multi-scale jitter, crop and flip.

    The picture is scaled by what makes it fit times a factor that is uniform in `factors`; 0.8 to
    1.2 of 640 pixels are the 512 to 768 of arXiv 1904.09925. Where it is then larger than the
    image, a uniformly drawn part is seen. All five numbers are drawn whatever the settings, so
    that one setting does not change what another draws.

    Args:
      picture: h, w.
      size: H, W.
      factors: least and largest scale, in units of what fits.
      flip: probability that left and right change places.
      flip_vertical: probability that top and bottom do.
      rng: source of the draws.
    """
    drawn = rng.random(5)
    factor = factors[0] + (factors[1] - factors[0]) * drawn[0]
    scaled = _fitted(picture, size, factor)
    down = _seen(picture[0], scaled[0], size[0], drawn[1])
    across = _seen(picture[1], scaled[1], size[1], drawn[2])
    part = (down[0], across[0], down[1], across[1])
    shape = min(scaled[0], size[0]), min(scaled[1], size[1])
    return Placement(part, shape, bool(drawn[3] < flip), bool(drawn[4] < flip_vertical))


def _fitted(picture: tuple[int, int], size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Rows and columns of the picture at `factor` of the scale that makes it fit."""
    scale = factor * min(size[0] / picture[0], size[1] / picture[1])
    return max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))


def _seen(length: int, scaled: int, most: int, drawn: float) -> tuple[float, float]:
    """First and last edge, in picture pixels, of what is seen of a side; `drawn` is in [0, 1)."""
    if scaled <= most:
        return 0.0, float(length)
    first = int(drawn * (scaled - most + 1))
    return first * length / scaled, (first + most) * length / scaled


def move_boxes(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    """Returns float64 [M, 4]: the boxes in pixels of the network image, not clipped."""
    down, across = placement.scale
    corner = np.array(placement.part[:2] * 2)
    moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - corner) * (down, across, down, across)
    if placement.mirrored:
        moved[:, [1, 3]] = placement.shape[1] - moved[:, [3, 1]]
    if placement.upside_down:
        moved[:, [0, 2]] = placement.shape[0] - moved[:, [2, 0]]
    return moved


def clip_boxes(boxes: np.ndarray, placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes [M, 4] of the network image to the part that the picture covers.

    Returns:
      The clipped boxes, and bool [M]: whether anything of a box is seen.
    """
    rows, columns = placement.shape
    clipped = np.clip(boxes, 0, (rows, columns, rows, columns))
    return clipped, (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])


def wide_enough(boxes: np.ndarray) -> np.ndarray:
    """Returns bool [M]: whether both sides of a box have `LEAST_SIDE`."""
    return (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= LEAST_SIDE


def draw(
    picture: Picture, placement: Placement, image: np.ndarray, mean: Rgb, std: Rgb, exact: bool
) -> None:
    """Writes the picture, placed and normalised, into `image` float32 [H, W, 3] of zeros.

    Pixels are interpolated linearly, as in the public detectors, which takes 0.6 of the time of
    cubic: as Pillow does if `exact`, else without its rounding and in less time.

    Raises:
      BadImage: the picture cannot be decoded; nothing was written.
    """
    rows, columns = placement.shape
    seen = guarded(lambda: _seen_levels(picture, placement, exact))
    if placement.upside_down:
        seen = seen[::-1]
    augment.normalise(seen, mean, std, image[:rows, :columns])


def _seen_levels(picture: Picture, placement: Placement, exact: bool) -> np.ndarray:
    """The part that is seen, resized and mirrored, uint8 or float32 [rows, columns, 3]."""
    top, left, bottom, right = placement.part
    box, mirrored = (left, top, right, bottom), placement.mirrored
    if not exact:
        return picture.planes(box, placement.shape, "linear", mirrored).transpose(2, 1, 0)
    seen = picture.render(box, placement.shape, Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.mirror(seen) if mirrored else seen)
