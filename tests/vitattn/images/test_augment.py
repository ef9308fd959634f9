"""Augmentations: their ranges, what they may not do, and that the generator decides everything."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitattn.images import augment, colour
from vitattn.images.decode import open_picture

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
MEAN = (0.2, 0.4, 0.6)


def generator(seed=0):
    return np.random.default_rng(seed)


def test_inception_crops_stay_inside_and_in_their_ranges():
    rng = generator()
    boxes = np.array([augment.inception_box(600, 400, rng) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 600
    assert bottom.max() <= 400
    area = (right - left) * (bottom - top) / (600 * 400)
    aspect = (right - left) / (bottom - top)
    assert 0.08 <= area.min() < 0.1
    assert 0.85 < area.max() <= 1
    assert 0.75 - 1e-9 <= aspect.min() < 0.77
    assert 1.31 < aspect.max() <= 4 / 3 + 1e-9
    assert left.max() > 300
    # Uniform in area up to where the aspect no longer fits: as many below as above 0.29 of
    # 0.08..0.5.
    below, above = np.sum(area < 0.29), np.sum((area > 0.29) & (area < 0.5))
    assert abs(below - above) < 6 * np.sqrt(below)


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (1, 1), (3, 500)])
def test_pictures_of_extreme_aspect_give_an_allowed_crop(width, height):
    for seed in range(20):
        left, top, right, bottom = augment.inception_box(width, height, generator(seed))
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
        assert 0.75 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
@pytest.mark.parametrize("size", [7, 32])
def test_an_augmentation_is_a_function_of_its_generator(name, size):
    apply = augment.AUGMENTATIONS[name]

    def run(seed):
        image = apply(open_picture(PICTURE), size, generator(seed), MEAN)
        assert image.shape == (size, size, 3)
        assert image.dtype in (np.uint8, np.float32)
        assert 0 <= image.min() <= image.max() <= 255
        return np.ascontiguousarray(image)

    np.testing.assert_array_equal(run(1), run(1))
    different = {run(seed).tobytes() for seed in range(12)}
    expected = {"none": 1, "flip": 2}.get(name)
    assert len(different) == expected if expected else len(different) > 8


def test_flip_crop_moves_by_at_most_an_eighth_and_fills_with_the_mean():
    base = np.asarray(augment.none(open_picture(PICTURE), 32, generator(), MEAN))
    seen = set()
    for seed in range(300):
        image = np.asarray(augment.flip_crop(open_picture(PICTURE), 32, generator(seed), MEAN))
        seen.add(find_shift(base, image))
    tops, lefts, flips = map(set, zip(*seen, strict=True))
    assert tops == lefts == set(range(9))
    assert flips == {True, False}


def test_flip_mirrors_and_does_nothing_else():
    base = np.asarray(augment.none(open_picture(PICTURE), 32, generator(), MEAN))
    images = [augment.flip(open_picture(PICTURE), 32, generator(n), MEAN) for n in range(200)]
    mirrored = [np.array_equal(image, base[:, ::-1]) for image in images]
    assert all(m or np.array_equal(i, base) for m, i in zip(mirrored, images, strict=True))
    assert 70 < sum(mirrored) < 130


def find_shift(base, image):
    """The (top, left, flipped) of the crop of the padded base that equals the image."""
    padded = np.empty((40, 40, 3), np.uint8)
    padded[:] = (51, 102, 153)
    padded[4:36, 4:36] = base
    for top in range(9):
        for left in range(9):
            crop = padded[top : top + 32, left : left + 32]
            if np.array_equal(crop, image):
                return top, left, False
            if np.array_equal(crop[:, ::-1], image):
                return top, left, True
    raise AssertionError("the image is no crop of the padded picture")


def test_shift_never_mirrors_and_moves_little():
    blob = np.zeros((16, 16, 1), np.uint8)
    blob[4:6, 4:6] = 255
    rows, columns = np.mgrid[0:32, 0:32]

    def centre(image):
        weight = np.asarray(image).astype(float)[..., 0]
        return tuple(((weight * rows).sum(), (weight * columns).sum()) / weight.sum())

    plain = centre(augment.none(open_picture(blob), 32, generator(0), MEAN))
    centres = [
        centre(augment.shift(open_picture(blob), 32, generator(seed), MEAN)) for seed in range(200)
    ]
    still = centres.count(plain)
    assert 70 < still < 130, "half of them stay as they are"
    # The blob's centre is 6.5 pixels up and left of the middle of 32: by 3.2 of shift, by 15 % of
    # scale and by 12 degrees it moves 5.6 at most; a mirrored one would lie 13 away.
    distance = np.abs(np.array(centres) - 9.5).max()
    assert 2 < distance < 5.7


class Draws:
    """A generator whose uniform draws are given, and whose digits all move."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return 0.99

    def uniform(self, low, high, size=None):
        del low, high
        return self.values.pop(0) if size is None else np.array(self.values.pop(0))


@pytest.mark.parametrize("angle", [-12.0, 7.0])
def test_shift_turns_as_pillow_rotates_and_moves_as_asked(angle):
    down, across = np.mgrid[0:32, 0:32]
    bump = 255 * np.exp(-((down - 10) ** 2 + (across - 20) ** 2) / 60)
    picture = bump.astype(np.uint8)[..., None]
    turned = augment.shift(open_picture(picture), 32, Draws(angle, (0, 0), 1.0), MEAN)
    expected = Image.fromarray(picture[..., 0]).rotate(-angle, Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(turned)[..., 0].astype(int) - np.asarray(expected)).max() <= 1
    moved = augment.shift(open_picture(picture), 32, Draws(0.0, (3 / 32, -2 / 32), 1.0), MEAN)
    np.testing.assert_array_equal(np.asarray(moved)[:30, 3:, 0], picture[2:, :29, 0])


def test_evaluation_equals_resizing_the_shorter_side_and_cutting_the_centre():
    down, across = np.mgrid[0:256, 0:384] / 1.5
    smooth = np.stack([down, across, down], -1).astype(np.uint8)
    found = augment.evaluation(open_picture(smooth), 56, 0.875)
    resized = Image.fromarray(smooth).resize((96, 64), Image.Resampling.BICUBIC)
    expected = resized.crop((20, 4, 76, 60))
    assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("planes", [False, True])
def test_normalise_subtracts_and_divides(planes):
    whole = np.full((50, 70, 3), 7, np.float32)
    found = whole[5:45, 3:63]
    levels = PICTURE.transpose(2, 1, 0).astype(np.float32).transpose(2, 1, 0) if planes else PICTURE
    augment.normalise(levels, MEAN, (0.5, 0.25, 0.1), found)
    assert (whole == 7).sum() == 3 * (50 * 70 - 40 * 60), "nothing else is written"
    np.testing.assert_allclose(
        found, (PICTURE / 255 - MEAN) / (0.5, 0.25, 0.1), rtol=1e-5, atol=1e-5
    )


def test_inception_is_the_crop_of_pillow_with_the_same_draws():
    """The crop, the flip and the colours of a seed are those of the draws; resizing is Pillow's but
    for its rounding."""
    flips = set()
    for seed in range(12):
        rng = generator(seed)
        box = augment.inception_box(60, 40, rng)
        mirrored = rng.random() < 0.5
        flips.add(mirrored)
        expected = open_picture(PICTURE).render(box, 24)
        expected = np.asarray(ImageOps.mirror(expected) if mirrored else expected)
        found = augment.inception_crop(open_picture(PICTURE), 24, generator(seed), MEAN)
        assert np.abs(found - expected.astype(float)).max() < 32, (
            "noise overshoots between the axes"
        )
        assert np.abs(found - expected.astype(float)).mean() < 1
        planes = np.ascontiguousarray(found.transpose(2, 1, 0))
        colour.distort(planes, rng)
        coloured = augment.inception(open_picture(PICTURE), 24, generator(seed), MEAN)
        np.testing.assert_array_equal(coloured, planes.transpose(2, 1, 0))
    assert flips == {False, True}
