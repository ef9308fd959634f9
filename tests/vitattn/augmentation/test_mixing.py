"""Mixup and CutMix: pixels and labels against plain loops, the distributions, the pairs."""

import numpy as np
import pytest

from trainlib.data.order import MIXING, generator
from vitattn.augmentation.mixing import UNMIXED, Mixing, Mixture, blend, cut_window


def mixing(mixup=0.0, cutmix=0.0, probability=1.0, cutmix_probability=0.5, seed=4):
    return Mixing(mixup, cutmix, probability, cutmix_probability, seed)


def drawn(count, height=32, width=48, **values):
    rng = np.random.default_rng(0)
    return [mixing(**values).draw(height, width, rng) for _ in range(count)]


def plain(image, partner, mixture):
    """Pixel by pixel."""
    mixed = np.empty_like(image)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            if mixture.window is None:
                mixed[row, column] = (
                    mixture.share * image[row, column] + (1 - mixture.share) * partner[row, column]
                )
            else:
                top, left, bottom, right = mixture.window
                inside = top <= row < bottom and left <= column < right
                mixed[row, column] = (partner if inside else image)[row, column]
    return mixed


@pytest.mark.parametrize(
    "mixtures",
    [
        [Mixture(0.3), Mixture(0.9)],
        [Mixture(0.5, (2, 1, 6, 3)), Mixture(0.25)],
        [UNMIXED, Mixture(0.0, (0, 0, 7, 5))],
        [UNMIXED, UNMIXED],
    ],
    ids=["mixup", "both", "cutmix", "none"],
)
def test_both_of_a_pair_take_up_the_other_as_it_was(mixtures):
    pair = np.random.default_rng(1).normal(size=(2, 7, 5, 3)).astype(np.float32)
    expected = [plain(pair[n], pair[1 - n], mixtures[n]) for n in (0, 1)]
    blend(pair, mixtures)
    np.testing.assert_allclose(pair, expected, atol=1e-6)


def test_shares_of_mixup_are_those_of_beta():
    """Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1))."""
    for alpha, variance in ((0.2, 0.1786), (1.0, 0.0833)):
        found = drawn(6000, mixup=alpha)
        assert all(mixture.window is None for mixture in found)
        shares = np.array([mixture.share for mixture in found])
        assert abs(shares.mean() - 0.5) < 6 * np.sqrt(variance / 6000)
        assert abs(shares.var() - variance) < 0.01


def test_labels_of_cutmix_weigh_as_many_pixels_as_they_have():
    for mixture in drawn(60, cutmix=1.0):
        image = plain(np.ones((32, 48, 1)), np.zeros((32, 48, 1)), mixture)
        assert mixture.share == image.mean()


def test_rectangles_of_cutmix():
    """Equation 2 of arXiv 1905.04899: sides of sqrt(1 - share), any centre; cut at the border."""
    rng = np.random.default_rng(5)
    found = np.array([cut_window(100, 200, 0.75, rng) for _ in range(4000)])
    top, left, bottom, right = found.T
    assert found.min() == 0
    assert (bottom <= 100).all()
    assert (right <= 200).all()
    assert (bottom - top).max() == 50
    assert (right - left).max() == 100
    assert (bottom - top).min() == 25, "the centre is in the image"
    inside = (top > 0) & (bottom < 100)
    # Whole in height where the centre is 25 pixels from both ends: 49 or 51 of 100 centres.
    assert abs(inside.mean() - 0.5) < 0.06
    # Of 50 rows 25 + 12.5 x 2 / 2 are left on average in the outer half: 43.75 in all.
    assert abs((bottom - top).mean() - 43.75) < 1
    top, left, bottom, right = cut_window(10, 10, 1.0, rng)
    assert (bottom - top) * (right - left) == 0, "all of it is left"


def test_probabilities_of_mixing_and_of_its_kinds():
    found = drawn(4000, mixup=0.2, cutmix=1.0, probability=0.8, cutmix_probability=0.25)
    cut = sum(mixture.window is not None for mixture in found)
    still = sum(mixture == UNMIXED for mixture in found)
    assert abs(still - 800) < 155  # six deviations
    assert abs(cut - 800) < 155
    assert all(mixture.window is not None for mixture in drawn(100, cutmix=1.0))
    assert set(drawn(50, mixup=1.0, probability=0.0)) == {UNMIXED}


def batch(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(count, 6, 4, 3)).astype(np.float32),
        "label": rng.integers(0, 10, count).astype(np.int32),
    }


def test_neighbours_are_mixed_by_draws_of_their_own():
    found, given = batch(8), batch(8)
    records, draws = np.arange(8) + 100, np.full(8, 3)
    chosen = mixing(mixup=0.4, cutmix=1.0)
    chosen.apply(found, np.ones(8, np.float32), records, draws)
    assert (found["partner"].dtype, found["share"].dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(found["label"], given["label"])
    np.testing.assert_array_equal(found["partner"], given["label"][[1, 0, 3, 2, 5, 4, 7, 6]])
    for row in range(8):
        mixture = chosen.draw(6, 4, generator(4, 3, 100 + row, MIXING))
        expected = plain(given["image"][row], given["image"][row ^ 1], mixture)
        np.testing.assert_allclose(found["image"][row], expected, atol=1e-6)
        assert found["share"][row] == np.float32(mixture.share)
    assert len(set(found["share"])) > 5


def test_a_record_that_cannot_be_read_is_mixed_with_nobody():
    found, given = batch(4), batch(4)
    weights = np.array([1, 0, 1, 1], np.float32)
    mixing(mixup=1.0).apply(found, weights, np.arange(4), np.zeros(4, int))
    np.testing.assert_array_equal(found["image"][:2], given["image"][:2])
    np.testing.assert_array_equal(found["share"][:2], 1)
    assert not np.array_equal(found["image"][2:], given["image"][2:])
