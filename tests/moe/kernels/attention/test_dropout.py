"""The generator of dropped probabilities: its rate, and that its draws are independent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels.attention.dropout import columns, keep_mask, kept, rows

SHAPE = (4, 8, 256, 256)


def mask(rate: float = 0.5, seed: int = 0) -> np.ndarray:
    """float64 [B, N, Q, K] of -1 and 1."""
    seeds = jax.random.bits(jax.random.key(seed), SHAPE[:2])
    return np.where(keep_mask(seeds, *SHAPE[2:], rate), 1.0, -1.0)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_rate_is_that_asked_for(rate):
    """To four standard deviations, in all and by each query and key."""
    found = mask(rate) < 0
    deviation = np.sqrt(rate * (1 - rate))
    assert abs(found.mean() - rate) <= 4 * deviation / np.sqrt(found.size) + 1e-9
    for axes in ((0, 1, 2), (0, 1, 3)):
        share = found.mean(axis=axes)
        counted = found.size / len(share)
        assert np.max(np.abs(share - rate)) <= 5 * deviation / np.sqrt(counted) + 1e-9


@pytest.mark.parametrize(
    ("axis", "step"), [(0, 1), (1, 1), (1, 4), (2, 1), (2, 8), (2, 128), (3, 1), (3, 8), (3, 128)]
)
def test_neighbours_do_not_agree_more_than_chance(axis, step):
    """Sequences, heads, queries and keys: the mean product of draws a step apart is zero."""
    found = mask()
    product = found * np.roll(found, step, axis=axis)
    assert abs(product.mean()) <= 4 / np.sqrt(found.size)


def test_corners_of_rectangles_are_independent():
    """A sum of a row's and a column's number alone would make the fourth corner follow."""
    one = mask()
    product = one * np.roll(one, 1, 2) * np.roll(one, 1, 3) * np.roll(one, (1, 1), (2, 3))
    assert abs(product.mean()) <= 4 / np.sqrt(one.size)


def test_other_seeds_draw_anew():
    assert abs((mask(seed=0) * mask(seed=1)).mean()) <= 4 / np.sqrt(np.prod(SHAPE))


def test_a_part_is_drawn_as_in_the_whole():
    """What a kernel does with a block: positions count, not the size of the array."""
    seeds = jax.random.bits(jax.random.key(0), (1, 1))
    whole = keep_mask(seeds, 300, 400, 0.3)[0, 0]
    seed = jax.lax.bitcast_convert_type(seeds[0, 0], jnp.int32)
    part = kept(
        rows(seed, jnp.arange(100, 200, dtype=jnp.int32)[:, None]),
        columns(jnp.arange(256, 400, dtype=jnp.int32)),
        0.3,
    )
    np.testing.assert_array_equal(part, whole[100:200, 256:])


def test_draws_are_the_same_on_every_platform():
    """Whole numbers: these were computed by hand of the formula, in Python's integers."""
    bits = 2**32 - 1

    def mix(x):
        x ^= x >> 16
        x = x * 0x7FEB352D & bits
        x ^= x >> 15
        return x * 0x846CA68B & bits

    seed, rate = 123456789, 0.25

    def stays(q, k):
        mixed = mix((mix(seed ^ mix(q)) + mix(k + 2**31)) & bits)
        return (mixed + 2**31 & bits) >= rate * 2**32  # as a signed number, from the least

    want = [[stays(q, k) for k in range(40)] for q in range(30)]
    found = keep_mask(jnp.asarray([[seed]], jnp.uint32), 30, 40, rate)[0, 0]
    np.testing.assert_array_equal(found, want)
