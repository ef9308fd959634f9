"""Running statistics: pieces are together the whole, and an average of batches is stored."""

import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.model import statistics
from trainlib.model.statistics import FRESH, UNCOUNTED, Moments


def moments(x, weights, decay=0.9):
    """In float64, of rows [B, C] that count `weights` [B]."""
    share = weights / max(weights.sum(), 1e-30)
    mean = share @ x
    var = share @ (x - mean) ** 2
    return Moments(*map(jnp.float32, (weights.sum(), mean, var)), decay)


def stacked(pieces):
    arrays = ((m.count, m.mean, m.var) for m in pieces)
    return Moments(*(jnp.stack(part) for part in zip(*arrays, strict=True)), pieces[0].decay)


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_pieces_together_are_the_whole(offset):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 5)) * 2 + rng.normal(size=5) * 3 + offset
    for weights in (np.ones(24), (np.arange(24) < 7) * 1.0, rng.random(24)):
        whole = moments(x, weights)
        cut = [moments(x[i::4], weights[i::4]) for i in range(4)]
        found = statistics.merge(stacked(cut))
        np.testing.assert_allclose(found.count, whole.count, rtol=1e-6)
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.var, whole.var, rtol=2e-4 if offset else 1e-5)


def test_pieces_without_a_row_count_nothing():
    x = np.arange(12.0).reshape(4, 3)
    empty = statistics.merge(stacked([moments(x, np.zeros(4))] * 2))
    assert float(empty.count) == 0
    running = {"norm.mean": jnp.full(3, 7.0), "norm.var": jnp.full(3, 2.0)}
    for counts in ([FRESH], [UNCOUNTED], [40]):
        moved, after = statistics.follow(running, jnp.int32(counts), {"norm": empty})
        assert after.tolist() == counts
        for name in running:
            np.testing.assert_array_equal(moved[name], running[name])


def test_the_first_update_leaves_nothing_of_what_statistics_start_as():
    x = np.random.default_rng(0).normal(size=(8, 3)) * 5 + 2
    running = {"a.mean": jnp.zeros(3), "a.var": jnp.ones(3)}
    running |= {"b.c.mean": jnp.zeros(3), "b.c.var": jnp.ones(3), "d.mean": jnp.zeros(3)}
    seen = {"a": moments(x, np.ones(8), decay=0.9999)}
    moved, counts = statistics.follow(running, statistics.fresh(running), seen)
    np.testing.assert_allclose(moved["a.mean"], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moved["a.var"], x.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_array_equal(moved["b.c.mean"], 0)
    assert (statistics.layers(running), counts.tolist()) == (["a", "b.c"], [2, 1])


@pytest.mark.parametrize(("decay", "plain_from"), [(0.75, 30), (0.9, 90), (0.99, 990)])
def test_the_share_of_a_batch_falls_until_it_is_that_of_the_plain_average(decay, plain_from):
    shares = np.asarray(statistics._share(jnp.arange(2000) + FRESH, decay))
    expected = [max(1 - decay, 10 / (10 + n)) for n in range(2000)]
    np.testing.assert_allclose(shares, expected, rtol=1e-5)
    np.testing.assert_allclose(shares[plain_from:], 1 - decay, rtol=1e-5)
    assert shares[plain_from - 1] > (1 - decay) * 1.0005


def test_a_short_run_does_not_depend_on_how_slow_its_decay_is():
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(8, 2)) + np.exp(-step / 5) * 20 for step in range(40)]
    ends = {}
    for decay in (0.9, 0.9999):
        running = {"n.mean": jnp.zeros(2), "n.var": jnp.ones(2)}
        counts = statistics.fresh(running)
        for x in batches:
            seen = {"n": moments(x, np.ones(8), decay)}
            running, counts = statistics.follow(running, counts, seen)
        ends[decay] = running
    for name in ends[0.9]:
        np.testing.assert_allclose(ends[0.9][name], ends[0.9999][name], rtol=1e-5)
    # Batch means began at 20; a plain average at 0.9999 would stand at 0.01, one of all at 2.7.
    assert np.abs(ends[0.9999]["n.mean"]).max() < 0.5


def test_statistics_that_nobody_counted_move_by_the_decay_alone():
    x = np.full((4, 1), 3.0)
    running = {"n.mean": jnp.ones(1), "n.var": jnp.ones(1)}
    seen = {"n": moments(x, np.ones(4), decay=0.75)}
    moved, counts = statistics.follow(running, statistics.uncounted(running), seen)
    np.testing.assert_allclose(moved["n.mean"], [1.5])
    assert counts.tolist() == [UNCOUNTED]


def test_what_is_left_of_a_statistic():
    assert statistics.left_after(40, UNCOUNTED, 0.9999) == pytest.approx(0.9999**40, rel=1e-4)
    assert statistics.left_after(40, FRESH, 0.9999) == 0
    assert statistics.left_after(10, 11, 0.9) == pytest.approx(
        np.prod([1 - 10 / (20 + n) for n in range(10)]), rel=1e-4
    )
