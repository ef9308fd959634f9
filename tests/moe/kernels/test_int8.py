"""Matrices of experts as int8: what rounding keeps, and what the experts compute with."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels import int8


@pytest.fixture
def w():
    """[E, I, O] whose channels differ by orders of magnitude; one of zeros, one of tiny numbers."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 17, 11)) * 10.0 ** rng.integers(-6, 6, size=(3, 1, 11))
    values[1, :, 4], values[2, :, 5] = 0.0, 1e-44
    return np.float32(values)


def test_each_number_is_rounded_to_the_nearest_of_its_channel(w):
    """Against a search over all 255 whole numbers, in float64."""
    q, scale = map(np.asarray, int8.rounded(jnp.asarray(w)))
    assert (q.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (3, 11))
    every = np.arange(-127, 128) * scale[..., None, :, None].astype(np.float64)  # [E, 1, O, 255]
    best = np.abs(every - w[..., None]).min(axis=-1)
    found = np.abs(q * scale[:, None].astype(np.float64) - w)
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-44)
    assert (found <= 0.5001 * scale[:, None]).all()
    largest = np.abs(q).max(axis=1)
    assert set(largest[np.abs(w).max(axis=1) > 1e-30]) == {127}
    assert scale[1, 4] == scale[2, 5] == 1.0
    assert largest[1, 4] == largest[2, 5] == 0


def test_rounding_has_no_sign_and_is_done_once(w):
    q, scale = int8.rounded(jnp.asarray(w))
    negative, same = int8.rounded(jnp.asarray(-w))
    np.testing.assert_array_equal(negative, -q)
    np.testing.assert_array_equal(same, scale)
    again, _ = int8.rounded(int8.restored(q, scale, jnp.float32))
    np.testing.assert_array_equal(again, q)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_scale(w, bad):
    w[0, 3, 2] = bad
    _, scale = int8.rounded(jnp.asarray(w))
    assert np.isfinite(scale).sum() == scale.size - 1
    assert not np.isfinite(scale[0, 2])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_experts_compute_with_numbers_in_the_type_of_their_tokens(w, dtype):
    q, scale = int8.rounded(jnp.asarray(w))
    bias = jnp.ones((3, 11))
    found = int8.in_type({"up": q, "up_scale": scale, "down": jnp.asarray(w), "bias": bias}, dtype)
    assert set(found) == {"up", "down", "bias"}
    assert {value.dtype for value in found.values()} == {jnp.dtype(dtype)}
    exact = np.asarray(q, np.float64) * np.asarray(scale, np.float64)[:, None]
    np.testing.assert_allclose(
        np.float64(found["up"]), exact, rtol=1e-6 if dtype == jnp.float32 else 2**-8
    )
