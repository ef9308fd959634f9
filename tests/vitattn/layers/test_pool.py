"""Pooling and resizing against direct loops in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.sharding.constrain import lowered_for
from vitattn.layers.pool import (
    average_pool,
    bilinear_resize,
    double,
    global_average_pool,
    max_pool,
)

SIZES = [(6, 7), (5, 5), (4, 8), (2, 1), (1, 1)]


def windows(x, window, stride):
    """Yields output position and the pixels of its window that lie in the map."""
    side = (window - 1) // 2 if window % 2 else 0
    rows = (x.shape[1] + 2 * side - window) // stride + 1
    cols = (x.shape[2] + 2 * side - window) // stride + 1
    for i, j in itertools.product(range(rows), range(cols)):
        top, left = i * stride - side, j * stride - side
        part = x[:, max(top, 0) : top + window, max(left, 0) : left + window]
        yield i, j, part


def reference(x, window, stride, reduce):
    found = {(i, j): reduce(part, axis=(1, 2)) for i, j, part in windows(x, window, stride)}
    rows, cols = (max(index) + 1 for index in zip(*found, strict=True))
    return np.stack([[found[i, j] for j in range(cols)] for i in range(rows)]).transpose(2, 0, 1, 3)


def sample(height, width, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (3, 1), (5, 2), (1, 2)])
def test_pools_equal_loops_over_the_pixels_inside(height, width, window, stride, platform):
    x = sample(height, width)
    with lowered_for(platform):
        average, largest = average_pool(x, window, stride), max_pool(x, window, stride)
    assert average.shape[1:3] == (-(-height // stride), -(-width // stride))
    np.testing.assert_allclose(average, reference(x, window, stride, np.mean), atol=1e-6)
    np.testing.assert_array_equal(largest, reference(x, window, stride, np.max))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (4, 4), (2, 1)])
def test_even_windows_have_no_padding(window, stride, platform):
    x = sample(8, 6)
    with lowered_for(platform):
        average, largest = average_pool(x, window, stride), max_pool(x, window, stride)
    np.testing.assert_allclose(average, reference(x, window, stride, np.mean), atol=1e-6)
    np.testing.assert_array_equal(largest, reference(x, window, stride, np.max))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_average_gradient_spreads_evenly_over_the_pixels_inside(platform):
    x = sample(5, 4)
    g = np.random.default_rng(1).normal(size=(2, 3, 2, 3))
    with lowered_for(platform):
        pulled = jax.jit(lambda x, g: jax.vjp(average_pool, x)[1](g)[0])
        dx = pulled(x, jnp.asarray(g, jnp.float32))
    expected = np.zeros(x.shape)
    for i, j, part in windows(expected, 3, 2):
        part += g[:, i, j][:, None, None] / (part.shape[1] * part.shape[2])
    np.testing.assert_allclose(dx, expected, atol=1e-6)


def pool_gradient(x, platform):
    with lowered_for(platform):
        return jax.grad(lambda x: jnp.sum(max_pool(x)))(jnp.asarray(x))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_maximum_gradient_goes_to_the_largest_pixel(platform):
    x = sample(6, 5)
    dx = pool_gradient(x, platform)
    expected = np.zeros(x.shape)
    for (i, j, part), (_, _, target) in zip(windows(x, 3, 2), windows(expected, 3, 2), strict=True):
        del i, j
        target += part == part.max(axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(dx, expected)


def test_pixels_that_tie_share_the_gradient_on_cpu_and_the_first_has_it_elsewhere():
    x = np.zeros((1, 2, 2, 1))  # one window
    np.testing.assert_allclose(pool_gradient(x, "cpu")[0, :, :, 0], np.full((2, 2), 0.25))
    np.testing.assert_array_equal(pool_gradient(x, "tpu")[0, :, :, 0], [[1, 0], [0, 0]])


def test_averages_of_bfloat16_are_summed_in_float32():
    x = jnp.full((1, 32, 32, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0].set(257.0)
    mean = global_average_pool(x)
    assert mean.dtype == jnp.bfloat16
    # A running sum in bfloat16 stops at 256: it would give 0.25.
    assert float(mean[0, 0]) == pytest.approx(1.25, rel=0.01)
    assert average_pool(x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("source", "target"), [((2, 3), (4, 6)), ((4, 4), (7, 8)), ((1, 1), (2, 2))]
)
def test_bilinear_interpolates_between_pixel_centres(source, target):
    x = sample(*source)
    y = bilinear_resize(x, *target)
    expected = np.zeros((2, *target, 3))
    for i, j in itertools.product(range(target[0]), range(target[1])):
        at = [
            np.clip((n + 0.5) * s / t - 0.5, 0, s - 1)
            for n, s, t in zip((i, j), source, target, strict=True)
        ]
        low = [int(a) for a in at]
        high = [min(a + 1, s - 1) for a, s in zip(low, source, strict=True)]
        u, v = at[0] - low[0], at[1] - low[1]
        top = (1 - v) * x[:, low[0], low[1]] + v * x[:, low[0], high[1]]
        bottom = (1 - v) * x[:, high[0], low[1]] + v * x[:, high[0], high[1]]
        expected[:, i, j] = (1 - u) * top + u * bottom
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 1), (1, 4)])
def test_a_map_is_doubled_pixel_by_pixel_and_its_gradient_added_up(height, width, dtype, platform):
    x = jnp.asarray(sample(height, width), dtype)
    g = np.random.default_rng(1).integers(-3, 4, (2, 2 * height, 2 * width, 3))
    with lowered_for(platform):
        doubled, (dx,) = jax.jit(lambda x, g: (lambda y, pull: (y, pull(g)))(*jax.vjp(double, x)))(
            x, jnp.asarray(g, dtype)
        )
    np.testing.assert_array_equal(doubled, np.asarray(x).repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(dx, g.reshape(2, height, 2, width, 2, 3).sum((2, 4)))
    assert doubled.dtype == dx.dtype == dtype
