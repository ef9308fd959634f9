"""Training augmentations and the evaluation crop: from a picture to pixels, and these normalised.

H W height and width of the image in pixels; a size is one number for a square, or (H, W). All
random draws come from the generator that is passed in, so that a picture is augmented alike in any
process. An augmentation is a function (picture, size, generator, mean) -> levels from 0 to 255
[H, W, 3], uint8 from Pillow or float32 that are not rounded; not all of them need the generator or
the mean colour. Where the image is not square, boxes have its
aspect W/H in place of the papers' squares, so that pictures are distorted no more than in a square.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from vitattn.images import colour, scratch
from vitattn.images.decode import Picture, Rgb
from vitattn.images.size import Box, Size, sides

# Inception (Szegedy et al. 2014, arXiv 1409.4842, section 6): crops of 8 % to 100 % of the area,
# aspect 3/4 to 4/3.
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10

# Digits are centred and upright: small turns (degrees), shifts (of the width) and scales keep their
# class.
_UNMOVED = 0.5
_TURN = 12.0
_SHIFT = 0.1
_SCALE = (0.85, 1.15)


def inception_box(width: int, height: int, rng: np.random.Generator, target: float = 1.0) -> Box:
    """Returns a random crop: its area is uniform in 8-100 % of the picture, its aspect is
    log-uniform in 3/4-4/3 of `target`.

    If no such crop fits in ten attempts, because the picture is too long, it is the largest centred
    crop of an allowed aspect.

    Args:
      width: of the picture in pixels.
      height: of the picture in pixels.
      rng: source of the draws.
      target: aspect of the image that the crop becomes.
    """
    least, most = target * _ASPECT[0], target * _ASPECT[1]
    for _ in range(_CROP_ATTEMPTS):
        area = rng.uniform(*_AREA) * width * height
        aspect = math.exp(rng.uniform(math.log(least), math.log(most)))
        wide, high = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if wide <= width and high <= height:
            left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
            return left, top, left + wide, top + high
    wide, high = min(width, height * most), min(height, width / least)
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def centre_box(width: int, height: int, fraction: float, target: float = 1.0) -> Box:
    """Returns the centred box of aspect `target` whose sides are `fraction` of the largest such
    box; for a square, of the picture's shorter side.

    Cutting it and resizing once equals resizing the shorter side to size/fraction and cutting the
    centre size x size.
    """
    high = min(height, width / target) * fraction
    wide = high * target
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def _aspect(size: Size) -> float:
    high, wide = sides(size)
    return wide / high


def inception_crop(picture: Picture, size: Size, rng: np.random.Generator, mean: Rgb) -> np.ndarray:
    """Inception's random crop and flip, without its colour distortion."""
    return _inception_planes(picture, size, rng).transpose(2, 1, 0)


def inception(picture: Picture, size: Size, rng: np.random.Generator, mean: Rgb) -> np.ndarray:
    """Inception's random crop, flip and colour distortion: the ImageNet recipe of both papers."""
    planes = _inception_planes(picture, size, rng)
    colour.distort(planes, rng)
    return planes.transpose(2, 1, 0)


def _inception_planes(picture: Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
    box = inception_box(picture.width, picture.height, rng, _aspect(size))
    return picture.planes(box, size, mirrored=rng.random() < 0.5)


def flip_crop(picture: Picture, size: Size, rng: np.random.Generator, mean: Rgb) -> np.ndarray:
    """CIFAR's: pad by an eighth (4 of 32 pixels), cut the size at random, flip.

    The border has the mean colour, which becomes zero when the image is normalised.
    """
    image = _centre(picture, size)
    pads = tuple(max(1, side // 8) for side in image.size)
    left, top = (int(v) for v in rng.integers(0, 2 * np.array(pads) + 1, 2))
    ground = Image.new("RGB", image.size, tuple(round(255 * v) for v in mean))
    ground.paste(image, (pads[0] - left, pads[1] - top))
    return np.asarray(ImageOps.mirror(ground) if rng.random() < 0.5 else ground)


def flip(picture: Picture, size: Size, rng: np.random.Generator, mean: Rgb) -> np.ndarray:
    """Mirrors half of the images and changes nothing else: for few epochs, or small networks."""
    image = _centre(picture, size)
    return np.asarray(ImageOps.mirror(image) if rng.random() < 0.5 else image)


def shift(picture: Picture, size: Size, rng: np.random.Generator, mean: Rgb) -> np.ndarray:
    """For digits: turns, shifts and scales half of them a little, and flips none, because a
    mirrored digit is another one or none.

    The other half stays sharp, as in evaluation: 8x8 pixels are blurred when they are moved.
    """
    if rng.random() < _UNMOVED:
        return none(picture, size, rng, mean)
    angle = math.radians(rng.uniform(-_TURN, _TURN))
    moved = rng.uniform(-_SHIFT, _SHIFT, 2)
    scale = rng.uniform(*_SCALE)
    image = _centre(picture, size)
    across, down = moved * image.size
    # Pillow asks for the source of each target pixel: turn and scale about the centre, then shift.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = image.width / 2, image.height / 2
    source_x = (cos, sin, x - cos * (x + across) - sin * (y + down))
    source_y = (-sin, cos, y + sin * (x + across) - cos * (y + down))
    matrix = source_x + source_y
    bilinear = Image.Resampling.BILINEAR
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, matrix, bilinear))


def none(picture: Picture, size: Size, rng: np.random.Generator, mean: Rgb) -> np.ndarray:
    """The largest centred square, or box of the aspect of the image, resized."""
    return np.asarray(_centre(picture, size))


def _centre(picture: Picture, size: Size, fraction: float = 1.0) -> Image.Image:
    box = centre_box(picture.width, picture.height, fraction, _aspect(size))
    return picture.render(box, size)


AUGMENTATIONS: dict[str, Callable[[Picture, Size, np.random.Generator, Rgb], np.ndarray]] = {
    "inception": inception,
    "inception_crop": inception_crop,
    "flip_crop": flip_crop,
    "flip": flip,
    "shift": shift,
    "none": none,
}


def evaluation(picture: Picture, size: Size, fraction: float) -> np.ndarray:
    """Resizes the shorter side to size/fraction and cuts out the centre, in one step."""
    return np.asarray(_centre(picture, size, fraction))


def normalise(levels: np.ndarray, mean: Rgb, std: Rgb, out: np.ndarray) -> None:
    """Writes (level / 255 - mean) / std of an RGB image [H, W, 3] to `out` float32 [H, W, 3].

    Pixels of 8 bits are taken in rows of 3 W numbers, ten times as fast as in threes; others are
    views of planes, and taken plane by plane.
    """
    if levels.dtype == np.uint8:
        high, wide, _ = levels.shape
        scale, offset = _affine(tuple(mean), tuple(std), wide)
        rows = out.reshape(high, 3 * wide)  # a view
        np.multiply(levels.reshape(rows.shape), scale, out=rows)
        np.subtract(rows, offset, out=rows)
        return
    scale, offset = _affine(tuple(mean), tuple(std), 1)
    planes = levels.transpose(2, 1, 0)
    scaled = np.multiply(planes, scale[:, None, None], out=scratch.empty("levels", planes.shape))
    for channel in range(3):
        np.subtract(scaled[channel].T, offset[channel], out=out[..., channel])


@functools.lru_cache(maxsize=64)
def _affine(mean: Rgb, std: Rgb, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """What levels in a row of so many RGB pixels are multiplied by, and what is subtracted then:
    float32 [3 pixels] each. To make them takes longer than to use them on a small image.
    """
    scale = 1 / (255 * np.asarray(std, np.float32))
    offset = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return np.tile(scale, pixels), np.tile(offset, pixels)
