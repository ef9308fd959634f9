"""The order of training rows: each once, unlike from epoch to epoch, and of any size."""

import numpy as np
import pytest

from moe.data.sources.shuffle import locate, shuffled


@pytest.mark.parametrize("records", [1, 2, 3, 4, 5, 16, 17, 603, 4096, 10_007])
def test_each_record_once(records):
    for epoch in range(3):
        order = shuffled(np.arange(records), 5, epoch, records)
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), np.arange(records))


def test_large_sources_need_no_list():
    """C4's 3e8 rows and beyond: in range, without repetition, whatever part is asked for."""
    for records in (322_000_000, 2**40 + 1):
        positions = np.arange(7 * records - 500, 7 * records + 500)
        epochs, found = locate(positions, 0, records)
        assert epochs.tolist() == [6] * 500 + [7] * 500
        assert found.min() >= 0
        assert found.max() < records
        assert len(set(found[:500].tolist())) == 500
        np.testing.assert_array_equal(locate(positions[333:337], 0, records)[1], found[333:337])


def test_seeds_and_epochs_give_unrelated_orders():
    orders = [shuffled(np.arange(1000), *key, 1000) for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # The number of agreeing places is Poisson with mean 1: above 8 once in 900,000.
            assert (one == other).sum() <= 8


def test_first_record_is_uniform():
    records, seeds = 50, 5000
    first = [int(shuffled(np.asarray([0]), seed, 0, records)[0]) for seed in range(seeds)]
    counts = np.bincount(first, minlength=records)
    # Chi-squared with 49 degrees of freedom is above 85.4 once in 1,000.
    assert ((counts - 100) ** 2 / 100).sum() < 85.4


def test_neighbours_are_unrelated():
    """Steps between neighbours of a random order of N are as long as between random pairs."""
    n = 100_000
    order = shuffled(np.arange(n), 3, 0, n)
    steps = np.abs(np.diff(order)) / n
    # |u - v| of uniform u, v has mean 1/3 and variance 1/18.
    assert abs(steps.mean() - 1 / 3) < 5 * np.sqrt(1 / 18 / n)
    ascents = (np.diff(order) > 0).mean()
    assert abs(ascents - 0.5) < 5 * np.sqrt(1 / 12 / n)
