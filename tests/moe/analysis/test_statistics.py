"""Entropies, controls and intervals against slow definitions."""

import math

import numpy as np
import pytest

from moe.analysis import statistics
from moe.analysis.statistics import Control, Property, explained, table, typical


@pytest.fixture(scope="module")
def tokens():
    """60 rows of 20 tokens: values that their experts follow half of the time."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(60), 20)
    codes = rng.integers(-1, 3, rows.shape)
    expert = np.where(rng.random(rows.shape) < 0.5, codes.clip(0), rng.integers(0, 5, rows.shape))
    return rows, codes, expert


def slow_table(codes, expert, values, experts):
    counts = np.zeros((values, experts), int)
    for v, e in zip(codes, expert, strict=True):
        if v >= 0 and e < experts:
            counts[v, e] += 1
    return counts


def slow_entropy(counts):
    shares = [c / sum(counts) for c in counts if c]
    return -sum(p * math.log(p) for p in shares)


def test_entropy_left(tokens):
    rows, codes, expert = tokens
    counts = table(codes, expert, 3, 4)
    np.testing.assert_array_equal(counts, slow_table(codes, expert, 3, 4))
    each = [slow_entropy(c) for c in counts]
    np.testing.assert_allclose(statistics.entropy(counts), each)
    left = sum(c.sum() * h for c, h in zip(counts, each, strict=True)) / counts.sum()
    assert statistics.conditional(counts) == pytest.approx(left)
    assert statistics.entropy(np.zeros((1, 4))) == [0]
    found = explained(Property("x", codes, "abc"), expert, 4, Control(rows))
    assert found.entropy == pytest.approx(left)
    assert found.share == pytest.approx(1 - left / found.control)
    assert 0.1 < found.share < 0.9
    assert found.noise < 0.1
    assert found.values == 3


def test_the_control_keeps_what_each_row_has(tokens):
    rows, _, expert = tokens
    control = Control(rows)
    of_row = Property("row", rows, [str(n) for n in range(60)])
    for counts in control.tables(of_row, expert, 5):
        np.testing.assert_array_equal(counts, table(rows, expert, 60, 5))
    # A property of whole rows is compared with rows that change places.
    half = Property("half", (rows >= 30).astype(int), "ab", of_rows=True)
    experts = (rows >= 30).astype(int)
    found = explained(half, experts, 2, control)
    assert (found.share, found.entropy) == (1.0, 0.0)
    assert found.control > 0.5


def test_intervals_hold_what_other_texts_give():
    """Over 40 texts, about 95 % of the intervals hold the entropy of the distribution."""
    p = np.asarray([0.6, 0.3, 0.1])
    truth, inside = slow_entropy(p), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = np.repeat(np.arange(80), 10)
        expert = rng.choice(3, p=p, size=rows.shape)
        control = Control(rows, rng)
        drawn = control.drawn(Property("x", np.zeros(len(rows), int), "a"), expert, 3)
        assert drawn.shape == (statistics.DRAWS, 1, 3)
        low, high = np.percentile(statistics.entropy(drawn)[:, 0], (2.5, 97.5))
        inside += low <= truth <= high
    assert 34 <= inside <= 40


def test_nothing_to_explain():
    rows = np.repeat(np.arange(4), 5)
    found = explained(Property("x", rows % 2, "ab"), np.zeros(20, int), 3, Control(rows))
    assert found.share is None
    assert statistics.ranked([found]) == [found]


def test_what_is_typical():
    counts = np.asarray([[400, 400], [90, 10], [0, 60], [3, 1]])
    one, two = typical(counts, ("same", "mine", "yours", "rare"), 5)
    assert [t.name for t in one] == ["mine"]
    assert [t.name for t in two] == ["yours"]
    assert one[0].count == 90
    assert one[0].lift == pytest.approx(90 / 493 / (100 / 964))


def test_exact_rules():
    codes, expert = np.asarray([0, 1, 2, 0, -1]), np.asarray([1, 0, 1, 1, 0])
    prop = Property("x", codes, "abc")
    assert statistics.exactly(prop, expert, 3) == [["b"], ["a", "c"], []]
    assert statistics.exactly(prop, np.asarray([1, 0, 1, 0, 0]), 3) is None
