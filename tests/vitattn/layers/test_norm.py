"""Batch normalisation against NumPy in float64: values, running statistics, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.model import statistics
from trainlib.model import weights as nn
from vitattn.layers.norm import ZEROS, BatchNorm, batch_normalise

EPS = 1e-3


def reference(x, scale, bias, eps):
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    return scale * (x - mean) / np.sqrt(var + eps) + bias, mean, var


def sample(shape, offset=0.0):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=shape) * 2 + offset,
        rng.normal(size=shape[-1]) + 1,
        rng.normal(size=shape[-1]),
        rng.normal(size=shape),
    )


def to_float32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (7, 2), (3, 1, 1, 4)])
def test_values_equal_the_formula(shape):
    x, scale, bias, _ = sample(shape)
    results = batch_normalise(*to_float32(x, scale, bias), EPS)
    for result, expected in zip(results, reference(x, scale, bias, EPS), strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (7, 2), (3, 1, 1, 4)])
def test_gradients_equal_differences_of_the_formula(shape):
    x, scale, bias, g = sample(shape)
    _, pull = jax.vjp(lambda *a: batch_normalise(*a, EPS)[0], *to_float32(x, scale, bias))
    gradients = pull(*to_float32(g))
    rng = np.random.default_rng(1)
    for position, gradient in enumerate(gradients):
        for _ in range(3):
            arguments = [x, scale, bias]
            direction = rng.normal(size=arguments[position].shape)
            ends = []
            for step in (1e-5, -1e-5):
                moved = list(arguments)
                moved[position] = moved[position] + step * direction
                ends.append(np.sum(g * reference(*moved, EPS)[0]))
            np.testing.assert_allclose(
                np.sum(gradient * direction), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-4
            )


def test_a_large_mean_does_not_cancel():
    # Mean 3000, variance 4: E[x^2] - E[x]^2 in float32 would be off by about 1.
    x, scale, bias, _ = sample((64, 8), offset=3000.0)
    x = np.asarray(x, np.float32)
    result = batch_normalise(*to_float32(x, scale, bias), EPS)[2]
    np.testing.assert_allclose(result, np.asarray(x, np.float64).var(0), rtol=1e-4)


def test_training_leaves_moments_and_evaluation_uses_running_statistics():
    spec = nn.abstract(BatchNorm(6, decay=0.75, eps=EPS))
    params = nn.initialise(spec.params, jax.random.key(0))
    state = nn.initialise(spec.model_state, jax.random.key(0))
    params["bias"] = jnp.arange(6.0)
    x, _, _, _ = sample((4, 3, 5, 6), offset=3.0)
    model = spec.bind(params, state)
    y = model(jnp.asarray(x, jnp.float32), train=True)
    (seen,) = nn.observed(model).values()
    assert (float(seen.count), seen.decay) == (4 * 3 * 5, 0.75)
    np.testing.assert_allclose(seen.mean, x.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(seen.var, x.var((0, 1, 2)), atol=1e-5)
    moved, _ = statistics.follow(state, statistics.fresh(state), nn.observed(model))
    np.testing.assert_allclose(moved["var"], x.var((0, 1, 2), ddof=1), atol=1e-5)

    model = spec.bind(params, moved)
    evaluated = model(jnp.asarray(x, jnp.float32), train=False)
    expected = (x - np.asarray(moved["mean"])) / np.sqrt(np.asarray(moved["var"]) + EPS)
    np.testing.assert_allclose(evaluated, expected + np.arange(6), atol=1e-5)
    assert not nn.observed(model)
    for name, value in nn.stats(model).items():
        np.testing.assert_array_equal(value, moved[name])
    assert not np.allclose(y, evaluated, atol=1e-3)


def plain_weighted(x, scale, bias, weights):
    """What autodiff differentiates: rows of x [B, .., C] count `weights` in mean and variance."""
    axes = tuple(range(x.ndim - 1))
    share = jnp.broadcast_to(weights.reshape(-1, *[1] * (x.ndim - 1)), x.shape)
    mean = jnp.average(x, axes, share)
    var = jnp.average((x - mean) ** 2, axes, share)
    return scale * (x - mean) / jnp.sqrt(var + EPS) + bias, mean, var


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["fillers", "general", "one"])
@pytest.mark.parametrize("devices", [1, 8])
def test_rows_count_by_their_weights_in_values_and_gradients(dtype, kind, devices):
    x, scale, bias, g = sample((16, 3, 2, 5), offset=1.0)
    rng = np.random.default_rng(2)
    weights = {"fillers": (np.arange(16) % 5 > 0) * 1.0, "general": rng.random(16) * 3}
    weights = jnp.float32(weights.get(kind, np.arange(16) == 3))
    x, g = jnp.asarray(x, dtype), jnp.asarray(g, dtype)
    scale, bias = to_float32(scale, bias)
    mesh = jax.make_mesh(
        (devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    @jax.jit
    def run(x, scale, bias, weights, g):
        found, pull = jax.vjp(lambda *a: batch_normalise(*a, EPS, weights), x, scale, bias)
        return found, pull((g, *(jnp.zeros_like(s) for s in found[1:])))

    found, gradients = run(
        jax.device_put(x, rows), scale, bias, jax.device_put(weights, rows), jax.device_put(g, rows)
    )
    wide, dy = x.astype(jnp.float32), g.astype(jnp.float32)
    expected, pull = jax.vjp(lambda *a: plain_weighted(*a, weights), wide, scale, bias)
    wanted = pull((dy, *(jnp.zeros_like(s) for s in expected[1:])))
    rounding = {"rtol": 1e-2, "atol": 2e-2} if dtype == "bfloat16" else {"rtol": 1e-4, "atol": 5e-5}
    exact = {"rtol": 1e-4, "atol": 1e-4}
    assert (found[0].dtype, gradients[0].dtype) == (x.dtype, x.dtype)
    np.testing.assert_allclose(found[0].astype(jnp.float32), expected[0], **rounding)
    np.testing.assert_allclose(gradients[0].astype(jnp.float32), wanted[0], **rounding)
    for one, other in zip((*found[1:], *gradients[1:]), (*expected[1:], *wanted[1:]), strict=True):
        np.testing.assert_allclose(one, other, **exact)


def test_weights_of_one_are_no_weights():
    x, scale, bias, g = sample((7, 3, 2))
    results = []
    for weights in (None, jnp.ones(7)):
        y, pull = jax.vjp(
            lambda *a, w=weights: batch_normalise(*a, EPS, w)[0], *to_float32(x, scale, bias)
        )
        results.append((y, *pull(*to_float32(g))))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_a_batch_in_which_no_row_counts_stays_finite():
    x, scale, bias, g = sample((4, 3, 2))
    found, pull = jax.vjp(
        lambda *a: batch_normalise(*a, EPS, jnp.zeros(4)), *to_float32(x, scale, bias)
    )
    dy = (*to_float32(g), found[1] * 0, found[2] * 0)
    assert all(np.isfinite(leaf).all() for leaf in (*found, *pull(dy)))
    # Normalised by all rows; in a deep network, x / sqrt(eps) in each layer would overflow.
    np.testing.assert_allclose(found[0], reference(x, scale, bias, EPS)[0], atol=1e-5)


def test_evaluation_gradients_treat_statistics_as_constants():
    spec = nn.abstract(BatchNorm(3, eps=EPS))
    state = {"mean": jnp.asarray([1.0, 2, 3]), "var": jnp.asarray([4.0, 5, 6])}
    params = {"scale": jnp.asarray([1.0, -1, 2]), "bias": jnp.zeros(3)}
    dx = jax.grad(lambda x: jnp.sum(spec.bind(params, state)(x, train=False)))(jnp.ones((5, 3)))
    expected = np.asarray([1, -1, 2]) / np.sqrt(np.asarray([4, 5, 6]) + EPS)
    np.testing.assert_allclose(dx, np.broadcast_to(expected, (5, 3)), rtol=1e-5)


def test_bfloat16_input_has_float32_statistics():
    x, scale, bias, g = sample((16, 8, 8, 4))
    x16 = jnp.asarray(x, jnp.bfloat16)
    (y, mean, var), pull = jax.vjp(
        lambda *a: batch_normalise(*a, EPS), x16, *to_float32(scale, bias)
    )
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    exact = np.asarray(x16, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-5)
    dx, dscale, dbias = pull((jnp.asarray(g, jnp.bfloat16), mean * 0, var * 0))
    assert (dx.dtype, dscale.dtype, dbias.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(
        dbias,
        np.asarray(jnp.asarray(g, jnp.bfloat16), np.float64).sum((0, 1, 2)),
        rtol=1e-4,
        atol=1e-3,
    )


def test_only_the_input_and_vectors_are_kept_for_the_backward_pass():
    x = jax.ShapeDtypeStruct((4, 8, 8, 16), jnp.float32)
    vector = jax.ShapeDtypeStruct((16,), jnp.float32)
    _, pull = jax.eval_shape(
        lambda *a: jax.vjp(lambda *b: batch_normalise(*b, EPS)[0], *a), x, vector, vector
    )
    kept = [leaf.shape for leaf in jax.tree.leaves(pull)]
    assert kept.count((4, 8, 8, 16)) == 1
    assert all(len(shape) <= 1 for shape in kept if shape != (4, 8, 8, 16))


def test_statistics_are_those_of_the_global_batch_on_any_number_of_devices():
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x, scale, bias, _ = sample((8, 2, 2, 3))
    normalise = jax.jit(lambda *a: batch_normalise(*a, EPS))
    results = normalise(jax.device_put(np.float32(x), rows), *to_float32(scale, bias))
    for result, expected in zip(results, reference(x, scale, bias, EPS), strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_zero_scale_starts_a_branch_as_nothing():
    spec = nn.abstract(BatchNorm(3, scale_init=ZEROS))
    params = nn.initialise(spec.params, jax.random.key(0))
    state = nn.initialise(spec.model_state, jax.random.key(0))
    y = spec.bind(params, state)(jnp.asarray(sample((4, 3))[0], jnp.float32), train=True)
    np.testing.assert_array_equal(y, np.zeros((4, 3)))
