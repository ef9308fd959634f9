"""`attend` against a float64 NumPy softmax, written out with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitattn.kernels.plain.attend import MASK_BIAS, attend, attention_weights

# (leading axes, queries, key rows, key columns, d, e)
SHAPES = [
    ((2, 3), 6, 3, 5, 4, 4),
    ((1,), 1, 7, 2, 5, 3),
    ((), 9, 1, 1, 2, 6),
    ((4,), 7, 4, 4, 8, 1),
]


def reference(q, k, v, row, col, g):
    """Output and the five gradients for cotangent g, in float64, one group at a time."""
    q, k, v, row, col, g = (np.asarray(x, np.float64) for x in (q, k, v, row, col, g))
    out, grads = np.zeros(g.shape), [np.zeros(x.shape) for x in (q, k, v, row, col)]
    for i in np.ndindex(q.shape[:-2]):
        place = row[i].T[:, :, None] + col[i].T[:, None, :]
        logits = q[i] @ k[i].T + place.reshape(len(q[i]), -1)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        p = weights / weights.sum(-1, keepdims=True)
        out[i] = p @ v[i]
        dp = g[i] @ v[i].T
        ds = p * (dp - (p * dp).sum(-1, keepdims=True))
        grid = ds.reshape(len(ds), row.shape[-2], col.shape[-2])
        parts = (ds @ k[i], ds.T @ q[i], p.T @ g[i], grid.sum(2).T, grid.sum(1).T)
        for grad, part in zip(grads, parts, strict=True):
            grad[i] = part
    return out, grads


def inputs(shape, seed=0):
    lead, queries, rows, cols, d, e = shape
    rng = np.random.default_rng(seed)
    sizes = [(queries, d), (rows * cols, d), (rows * cols, e), (rows, queries), (cols, queries)]
    arrays = [rng.standard_normal((*lead, *size)) for size in [*sizes, (queries, e)]]
    return [np.asarray(a, np.float32) for a in arrays]


def error(actual, expected):
    """Largest difference relative to the largest entry."""
    expected = np.asarray(expected, np.float64)
    difference = np.abs(np.asarray(actual, np.float64) - expected).max()
    return difference / max(np.abs(expected).max(), 1e-30)


@pytest.mark.sample(2)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_plain_softmax_in_value_and_all_gradients(shape):
    *args, g = inputs(shape)
    out, vjp = jax.vjp(attend, *map(jnp.asarray, args))
    expected, grads = reference(*args, g)
    assert error(out, expected) < 1e-5
    for name, actual, wanted in zip(("q", "k", "v", "row", "col"), vjp(g), grads, strict=True):
        assert np.abs(np.asarray(actual) - wanted).max() < 1e-5 * max(1, np.abs(wanted).max()), name


def test_bfloat16_inputs_keep_float32_softmax_statistics():
    """Many equal keys: a bfloat16 row sum stops growing at 256, so the mean of the values would be
    wrong by a factor."""
    keys = 32 * 32
    q, k = jnp.zeros((1, 8), jnp.bfloat16), jnp.zeros((keys, 8), jnp.bfloat16)
    v = jnp.ones((keys, 4), jnp.bfloat16)
    bias = jnp.zeros((32, 1), jnp.bfloat16)
    out = attend(q, k, v, bias, bias)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)


def test_bfloat16_is_close_to_the_reference_of_the_rounded_inputs():
    shape = ((2, 2), 12, 5, 7, 16, 8)
    args = [jnp.asarray(a, jnp.bfloat16) for a in inputs(shape)]
    out, vjp = jax.vjp(attend, *args[:5])
    grads = vjp(args[5])
    rounded = [np.asarray(a, np.float32) for a in args]
    expected, wanted = reference(*rounded)
    # Eight bits of mantissa: 2^-8 for each of a few roundings (p, ds, the result).
    assert error(np.asarray(out, np.float32), expected) < 3 * 2**-8
    for actual, want in zip(grads, wanted, strict=True):
        assert actual.dtype == jnp.bfloat16
        assert error(np.asarray(actual, np.float32), want) < 4 * 2**-8


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_masked_keys_take_no_part_and_get_no_gradient(dtype):
    """Rows and columns masked in both factors: their logits hold two mask values."""
    q, k, v, row, col, g = (jnp.asarray(a, dtype) for a in inputs(((2,), 5, 4, 6, 8, 8)))
    row, col = row.at[:, 3].set(MASK_BIAS), col.at[:, :2].set(MASK_BIAS)
    out, vjp = jax.vjp(attend, q, k, v, row, col)
    _, dk, dv, drow, dcol = vjp(g)
    assert all(bool(jnp.isfinite(x).all()) for x in (out, dk, dv, drow, dcol))
    for grad in (dk, dv):
        grid = np.asarray(grad, np.float32).reshape(2, 4, 6, 8)
        assert np.all(grid[:, 3] == 0)
        assert np.all(grid[:, :, :2] == 0)
    kept = k.reshape(2, 4, 6, 8)[:, :3, 2:].reshape(2, 12, 8)
    values = v.reshape(2, 4, 6, 8)[:, :3, 2:].reshape(2, 12, 8)
    alone = attend(q, kept, values, row[:, :3], col[:, 2:])
    np.testing.assert_allclose(
        np.asarray(out, np.float32),
        np.asarray(alone, np.float32),
        rtol=1e-2 if dtype != jnp.float32 else 1e-5,
        atol=1e-6,
    )


def test_large_logits_do_not_overflow():
    *args, g = inputs(((2,), 5, 3, 3, 4, 4))
    args[0] = args[0] * 1e4
    out, vjp = jax.vjp(attend, *map(jnp.asarray, args))
    expected, _ = reference(*args, g)
    assert error(out, expected) < 1e-4
    assert all(bool(jnp.isfinite(x).all()) for x in vjp(jnp.asarray(g)))


def test_without_bias_it_is_ordinary_attention():
    q, k, v, row, col, g = map(jnp.asarray, inputs(((3,), 6, 2, 4, 5, 7)))
    plain, vjp = jax.vjp(lambda q, k, v: attend(q, k, v), q, k, v)
    zeros, vjp_zeros = jax.vjp(
        lambda q, k, v: attend(q, k, v, jnp.zeros_like(row), jnp.zeros_like(col)), q, k, v
    )
    np.testing.assert_allclose(plain, zeros, rtol=1e-6)
    for a, b in zip(vjp(g), vjp_zeros(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_weights_for_pictures_are_the_probabilities_that_attend_uses():
    q, k, v, row, col, _ = map(jnp.asarray, inputs(((2,), 6, 3, 4, 5, 7)))
    weights = attention_weights(q, k, row, col)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights @ v, attend(q, k, v, row, col), rtol=1e-5, atol=1e-6)
