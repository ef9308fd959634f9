"""RandAugment: the published list, what each operation does at its ends, and the draws."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitattn.augmentation.rand_augment import OPERATIONS, RandAugment

LEVELS = np.random.default_rng(0).integers(0, 256, (24, 33, 3), np.uint8)
IMAGE = Image.fromarray(LEVELS)
MEAN = (0.2, 0.4, 0.6)
FILL = (51, 102, 153)


def changed(name, strength):
    return np.asarray(OPERATIONS[name](IMAGE, strength, FILL))


def test_the_fourteen_operations_of_the_paper():
    """Listing 1 of arXiv 1909.13719."""
    assert "".join(name.replace("_", "") for name in OPERATIONS) == (
        "identityautocontrastequalizerotatesolarizecolorposterizecontrastbrightnesssharpness"
        "shearxshearytranslatextranslatey"
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_size_and_type_and_a_strength_of_0_changes_nothing(name):
    for strength in (-1.0, -0.3, 0.7, 1.0):
        image = changed(name, strength)
        assert (image.shape, image.dtype) == (LEVELS.shape, np.uint8)
        if name not in ("identity", "auto_contrast"):  # the levels are of full contrast
            assert not np.array_equal(image, LEVELS)
    if name not in ("auto_contrast", "equalize"):  # which have no strength
        np.testing.assert_array_equal(changed(name, 0.0), LEVELS)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_levels_against_numpy(strength, sign):
    """Solarize inverts from 256 (1 - s) on, posterize keeps 8 - 4 s bits, brightness multiplies."""
    solarized = np.where(256 * (1 - strength) <= LEVELS, 255 - LEVELS, LEVELS)
    np.testing.assert_array_equal(changed("solarize", sign * strength), solarized)
    lost = round(4 * strength)
    posterized = LEVELS >> lost << lost
    np.testing.assert_array_equal(changed("posterize", sign * strength), posterized)
    bright = np.clip(LEVELS * (1 + 0.9 * sign * strength), 0, 255)
    np.testing.assert_allclose(changed("brightness", sign * strength), bright, atol=1)
    grey = LEVELS @ np.array([0.299, 0.587, 0.114])
    colour = grey[..., None] + (LEVELS - grey[..., None]) * (1 + 0.9 * sign * strength)
    np.testing.assert_allclose(changed("color", sign * strength), np.clip(colour, 0, 255), atol=2.5)


def test_where_pixels_go():
    """At full strength: 150/331 of a side, 0.3 pixels for each row, 30 degrees."""
    wide = LEVELS.shape[1]
    moved = changed("translate_x", 1.0)
    first = round(150 / 331 * wide)  # of 33 columns 15; the last come from beside the image
    np.testing.assert_array_equal(moved[:, :-first], LEVELS[:, first:])
    np.testing.assert_array_equal(moved[:, -first:], np.broadcast_to(FILL, (24, first, 3)))
    np.testing.assert_array_equal(
        changed("translate_y", 0.5), transposed("translate_x", 0.5), "rows as columns"
    )
    np.testing.assert_array_equal(changed("shear_y", 0.5), transposed("shear_x", 0.5))
    # Row y + 0.5 looks 0.3 (y + 0.5) to the right: row 16 by 4.95.
    row, shift = LEVELS[16].astype(float), 0.3 * 16.5
    whole, part = int(shift), shift - int(shift)
    sheared = (1 - part) * row[whole:-1] + part * row[whole + 1 :]
    np.testing.assert_allclose(changed("shear_x", 1.0)[16, : len(sheared)], sheared, atol=1)
    turned = IMAGE.rotate(-30, Image.Resampling.BILINEAR, fillcolor=FILL)
    np.testing.assert_array_equal(changed("rotate", -1.0), np.asarray(turned))


def transposed(name, strength):
    turned = IMAGE.transpose(Image.Transpose.TRANSPOSE)
    return np.asarray(OPERATIONS[name](turned, strength, FILL)).transpose(1, 0, 2)


def test_operations_are_drawn_alike_often_with_either_sign():
    rng = np.random.default_rng(1)
    drawn = [pair for _ in range(1400) for pair in RandAugment(2, 9.0).draw(rng)]
    counts = Counter(name for name, _ in drawn)
    # 2800 draws of 14: 200 each, deviation 13.6.
    assert set(counts) == set(OPERATIONS)
    assert 140 < min(counts.values()) <= max(counts.values()) < 260
    strengths = Counter(strength for _, strength in drawn)
    assert set(strengths) == {0.9, -0.9}
    assert abs(strengths[0.9] - 1400) < 160  # six deviations


def test_the_deviation_of_the_magnitude():
    rng = np.random.default_rng(1)
    drawn = [pair for _ in range(500) for pair in RandAugment(4, 9.0, 0.5).draw(rng)]
    magnitudes = np.array([10 * abs(strength) for _, strength in drawn])
    assert magnitudes.max() == 10, "the scale ends there"
    inside = magnitudes[magnitudes < 10]  # 97.7 % of a normal distribution
    assert 0.96 < len(inside) / len(magnitudes) < 0.99
    assert abs(inside.mean() - 8.97) < 0.08


def test_levels_that_are_not_rounded_are():
    levels = np.asfortranarray(LEVELS.astype(np.float32)) + np.float32(0.4)
    equal = RandAugment(1, 0.0)
    for seed in range(6):
        np.testing.assert_array_equal(
            equal.apply(levels, np.random.default_rng(seed), MEAN),
            equal.apply(LEVELS, np.random.default_rng(seed), MEAN),
        )


def test_operations_follow_each_other():
    for seed in range(5):
        many = RandAugment(3, 5.0)
        image = IMAGE
        for name, strength in many.draw(np.random.default_rng(seed)):
            image = OPERATIONS[name](image, strength, FILL)
        found = many.apply(LEVELS, np.random.default_rng(seed), MEAN)
        np.testing.assert_array_equal(found, np.asarray(image))


def test_operations_of_the_histogram_are_those_of_pillow():
    dark = Image.fromarray(LEVELS // 3 + 20)
    np.testing.assert_array_equal(
        OPERATIONS["auto_contrast"](dark, 0.5, FILL), ImageOps.autocontrast(dark)
    )
    assert np.asarray(OPERATIONS["auto_contrast"](dark, 0.5, FILL)).max() == 255
    np.testing.assert_array_equal(OPERATIONS["equalize"](dark, 0.5, FILL), ImageOps.equalize(dark))
