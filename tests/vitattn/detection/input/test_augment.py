"""Placement of pictures: boxes lie where the pixels lie, whatever is drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from vitattn.detection.input import augment
from vitattn.detection.input.augment import Placement
from vitattn.images.decode import open_picture

MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.1)
SIZES = [(64, 96), (96, 64), (64, 64)]


def generator(seed=0):
    return np.random.default_rng(seed)


def drawn(pixels, placement, size):
    """The network image without normalisation: pixels in 0..1, zero where no picture is. That of
    training, which is that of evaluation but for the rounding of the latter."""
    images = np.zeros((2, *size, 3), np.float32)
    for image, exact in zip(images, (False, True), strict=True):
        augment.draw(open_picture(pixels), placement, image, (0.0,) * 3, (1.0,) * 3, exact)
    assert np.abs(images[0] - images[1]).max() * 255 <= 1.5
    return images[0]


def extent(profile):
    """First and last edge of the white part of a profile: its length is the sum, and its middle
    the centre of mass."""
    length = profile.sum()
    middle = (profile * (np.arange(len(profile)) + 0.5)).sum() / length
    return middle - length / 2, middle + length / 2


@pytest.mark.parametrize("size", SIZES)
def test_boxes_move_as_pixels_do(size):
    """A white rectangle is drawn, jittered, flipped and cut: its edges lie on those of its box."""
    compared = 0
    for seed in range(150):
        rng = generator(seed)
        shape = tuple(rng.integers(40, 150, 2).tolist())
        top, left = (int(rng.integers(0, side // 2)) for side in shape)
        bottom, right = (
            int(rng.integers(a + 20, side + 1)) for a, side in zip((top, left), shape, strict=True)
        )
        pixels = np.zeros((*shape, 3), np.uint8)
        pixels[top:bottom, left:right] = 255
        placement = augment.jitter(shape, size, (0.6, 2.5), 0.5, 0.5, rng)
        box = np.array([[top, left, bottom, right]])
        moved = augment.move_boxes(box, placement)
        (clipped,), (seen,) = augment.clip_boxes(moved, placement)
        rows, columns = placement.shape
        margin = 2 * max(1, *placement.scale)  # an edge is blurred as wide
        limits = np.array([0, 0, rows, columns])
        near = np.abs(moved[0] - limits) < margin
        inside = (clipped[2:] - clipped[:2] > 2 * margin).all()
        if not seen or near.any() or not inside:
            continue
        compared += 1
        image = drawn(pixels, placement, size)[..., 0]
        middle = ((clipped[:2] + clipped[2:]) / 2).astype(int)
        found = (extent(image[:, middle[1]]), extent(image[middle[0]]))
        np.testing.assert_allclose(np.transpose(found).ravel(), clipped, atol=0.15)
    assert compared > 40


def reference(box, placement):
    """One box, edge by edge, as the docstrings say it."""
    (top, left, bottom, right), (rows, columns) = placement.part, placement.shape
    y = [(edge - top) / (bottom - top) * rows for edge in (box[0], box[2])]
    x = [(edge - left) / (right - left) * columns for edge in (box[1], box[3])]
    if placement.upside_down:
        y = [rows - y[1], rows - y[0]]
    if placement.mirrored:
        x = [columns - x[1], columns - x[0]]
    y = [min(max(edge, 0), rows) for edge in y]
    x = [min(max(edge, 0), columns) for edge in x]
    return y[0], x[0], y[1], x[1]


def test_many_boxes_move_as_one_by_one():
    rng = generator()
    for _ in range(50):
        shape = tuple(rng.integers(1, 900, 2).tolist())
        placement = augment.jitter(shape, (128, 64), (0.1, 10), 0.5, 0.5, rng)
        corners = rng.uniform(-20, 920, (30, 2, 2))
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
        clipped, seen = augment.clip_boxes(augment.move_boxes(boxes, placement), placement)
        expected = np.array([reference(box, placement) for box in boxes])
        np.testing.assert_allclose(clipped, expected, atol=1e-9)
        area = (expected[:, 2:] - expected[:, :2]).prod(1)
        np.testing.assert_array_equal(seen, area > 0)


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_flipping_twice_is_nothing(flips):
    pixels = generator().integers(0, 256, (48, 80, 3), np.uint8)
    whole = Placement((0.0, 0.0, 48.0, 80.0), (48, 80), *flips)
    boxes = generator(1).uniform(0, 48, (9, 4))
    once = augment.move_boxes(boxes, whole)
    assert not np.allclose(once, boxes)
    np.testing.assert_allclose(augment.move_boxes(once, whole), boxes, atol=1e-9)
    flipped = np.rint(255 * drawn(pixels, whole, (48, 80))).astype(np.uint8)
    assert not np.array_equal(flipped, pixels)
    again = np.rint(255 * drawn(flipped, whole, (48, 80))).astype(np.uint8)
    np.testing.assert_array_equal(again, pixels)


@pytest.mark.parametrize("size", SIZES)
def test_evaluation_keeps_the_aspect_and_sees_everything(size):
    for shape in [(480, 640), (640, 480), (333, 500), (64, 96), (7, 5), (4000, 3000)]:
        placement = augment.letterbox(shape, size)
        assert placement.part == (0, 0, *shape)
        assert any(side == most for side, most in zip(placement.shape, size, strict=True))
        assert all(side <= most for side, most in zip(placement.shape, size, strict=True))
        fit = min(size[0] / shape[0], size[1] / shape[1])
        for scale, side in zip(placement.scale, shape, strict=True):
            assert abs(scale - fit) * side <= 0.5, "but for rounding to whole pixels"


@pytest.mark.parametrize("exact", [False, True])
def test_what_no_picture_covers_is_zero_after_normalisation(exact):
    pixels = np.full((30, 60, 3), 200, np.uint8)
    image = np.zeros((64, 64, 3), np.float32)
    augment.draw(
        open_picture(pixels), augment.letterbox((30, 60), (64, 64)), image, MEAN, STD, exact
    )
    assert not image[32:].any()
    expected = (200 / 255 - np.array(MEAN)) / STD
    np.testing.assert_allclose(image[:32], np.broadcast_to(expected, (32, 64, 3)), rtol=1e-5)


def test_a_picture_that_fits_exactly_is_not_touched():
    pixels = generator().integers(0, 256, (64, 96, 3), np.uint8)
    image = drawn(pixels, augment.letterbox((64, 96), (64, 96)), (64, 96))
    np.testing.assert_array_equal(np.rint(image * 255), pixels)


def test_jitter_is_uniform_in_scale_and_place():
    """A picture of the size of the image: the scale is the factor, 0.8 to 1.2."""
    shape = (640, 640)
    many = [augment.jitter(shape, shape, (0.8, 1.2), 0.5, 0.0, generator(n)) for n in range(3000)]
    scales = np.array([placement.scale for placement in many])
    assert np.abs(scales[:, 0] - scales[:, 1]).max() < 1e-12
    assert 0.799 < scales.min() < 0.805
    assert 1.195 < scales.max() < 1.201
    assert abs(np.mean(scales[:, 0] < 1) - 0.5) < 0.03
    parts = np.array([placement.part for placement in many])
    small = scales[:, 0] < 1
    assert (parts[small] == (0, 0, 640, 640)).all(), "a smaller picture is seen whole"
    large = scales[:, 0] > 1.1
    assert parts.min() == 0
    assert parts.max() <= 640
    # What is cut away is above or below, left or right, with equal chances for every amount.
    room = 640 - (parts[large, 2:] - parts[large, :2])
    share = parts[large, :2] / room
    assert np.abs(share.mean(0) - 0.5).max() < 0.03
    assert share.min() < 0.02
    assert share.max() > 0.98
    assert abs(np.mean([placement.mirrored for placement in many]) - 0.5) < 0.03
    assert not any(placement.upside_down for placement in many)


def test_one_setting_does_not_change_what_another_draws():
    shape, size = (100, 140), (64, 96)
    plain = augment.jitter(shape, size, (0.8, 1.2), 0.0, 0.0, generator(7))
    flipped = augment.jitter(shape, size, (0.8, 1.2), 1.0, 1.0, generator(7))
    assert (flipped.part, flipped.shape) == (plain.part, plain.shape)
    assert (plain.mirrored, plain.upside_down) == (False, False)
    assert (flipped.mirrored, flipped.upside_down) == (True, True)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (2, 3), (3, 2000)])
@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_any_shape_are_placed(shape, size):
    pixels = np.full((*shape, 3), 255, np.uint8)
    for seed in range(8):
        rng = generator(seed)
        for placement in (
            augment.letterbox(shape, size),
            augment.jitter(shape, size, (0.05, 20.0), 0.5, 0.5, rng),
        ):
            top, left, bottom, right = placement.part
            assert 0 <= top < bottom <= shape[0] * (1 + 1e-12)
            assert 0 <= left < right <= shape[1] * (1 + 1e-12)
            rows, columns = placement.shape
            image = drawn(pixels, placement, size)
            assert (image[:rows, :columns] == 1).all()
            assert image.sum() == 3 * rows * columns


@pytest.mark.parametrize("exact", [False, True])
def test_a_large_photograph_is_decoded_small_in_its_place(exact):
    """A JPEG of 2,001 x 1,501 pixels for an image of 160: decoded at 1/8, its edges stay."""
    pixels = np.zeros((1501, 2001, 3), np.uint8)
    pixels[400:1200, 700:1900] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    picture = open_picture(file.getvalue())
    placement = augment.letterbox((1501, 2001), (128, 160))
    image = np.zeros((128, 160, 3), np.float32)
    augment.draw(picture, placement, image, (0.0,) * 3, (1.0,) * 3, exact)
    expected = augment.move_boxes(np.array([[400, 700, 1200, 1900]]), placement)[0]
    found = (extent(image[:, 100, 0]), extent(image[60, :, 0]))
    np.testing.assert_allclose(np.transpose(found).ravel(), expected, atol=0.06)
