"""Batch normalisation against NumPy in float64: values, running statistics, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.model import statistics
from trainlib.model import weights as nn
from trainlib.sharding.constrain import lowered_for
from vitattn.layers.norm import ZEROS, BatchNorm, batch_normalise
from vitattn.layers.pool import max_pool

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


def shifted(mean, near, spread=2.0):
    """(error of the mean in standard deviations, relative error of the variance) in one pass."""
    x = np.float32(np.random.default_rng(3).normal(mean, spread, (64, 8, 8, 16)))
    scale, bias = jnp.ones(16), jnp.zeros(16)
    with lowered_for("tpu"):
        _, found, var = batch_normalise(
            jnp.asarray(x), scale, bias, EPS, None, jnp.full(16, near, jnp.float32)
        )
    exact = np.float64(x)
    axes = (0, 1, 2)
    return (
        np.max(abs(found - exact.mean(axes))) / spread,
        np.max(abs(var / exact.var(axes) - 1)),
    )


@pytest.mark.parametrize(
    ("mean", "near", "error"),
    [
        (0.0, 0.0, 1e-6),
        (20.0, 0.0, 2e-5),  # 10 standard deviations, as no first step has them
        (200.0, 180.0, 2e-5),  # after 10 % of drift
        (6000.0, 6000.0, 1e-6),  # 3000 of them, well known
    ],
)
def test_one_pass_is_exact_near_the_running_mean(mean, near, error):
    of_mean, of_var = shifted(mean, near)
    assert of_mean < 1e-6 * max(1, mean / 10)
    assert of_var < error


def test_one_pass_far_from_the_running_mean_stays_finite_and_is_exact_one_step_later():
    spec = nn.abstract(BatchNorm(8, eps=EPS))
    params = nn.initialise(spec.params, jax.random.key(0))
    state = nn.initialise(spec.model_state, jax.random.key(0))
    x = jnp.asarray(sample((512, 8), offset=3000.0)[0], jnp.float32)  # 1500 standard deviations
    counts = statistics.fresh(state)
    with lowered_for("tpu"):
        for _ in range(2):
            model = spec.bind(params, state)
            y = model(x, train=True)
            assert np.isfinite(y).all()
            assert np.abs(y).max() < 10
            (seen,) = nn.observed(model).values()
            state, counts = statistics.follow(state, counts, nn.observed(model))
    np.testing.assert_allclose(seen.var, np.float64(x).var(0), rtol=1e-5)


@pytest.mark.sample(6)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pool", [(3, 2), (4, 4)])
def test_a_pool_before_the_normalisation_is_one_behind_it(train, dtype, pool):
    spec = nn.abstract(BatchNorm(6, eps=EPS))
    rng = np.random.default_rng(4)
    state = {"mean": to_float32(rng.normal(size=6))[0], "var": jnp.ones(6)}
    params = {"scale": jnp.asarray([1.0, -1, 0.5, -2, 3, 1]), "bias": jnp.arange(6.0) / 10}
    x = jnp.asarray(sample((4, 8, 8, 6), offset=1.0)[0], dtype)
    weights = jnp.asarray([1.0, 1, 0, 2])

    def loss(params, x):
        model = spec.bind(params, state)
        y = model(x, train=train, weights=weights, pool=pool)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, nn.observed(model))

    def behind(params, x):
        model = spec.bind(params, state)
        y = max_pool(model(x, train=train, weights=weights), *pool)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, nn.observed(model))

    results = []
    for function in (loss, behind):
        with lowered_for("tpu"):
            results.append(jax.value_and_grad(function, (0, 1), has_aux=True)(params, x))
    ((_, (y, seen)), gradients), ((_, (wanted, moments)), others) = results
    np.testing.assert_allclose(
        np.float32(y), np.float32(wanted), rtol=1e-6 if dtype == "float32" else 1e-2, atol=1e-6
    )
    for one, other in zip(jax.tree.leaves(seen), jax.tree.leaves(moments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    rounding = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 3e-2, "atol": 3e-2}
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
        # Values that tie in bfloat16 may share a window, and then another pixel may win.
        close = np.isclose(np.float32(one), np.float32(other), **rounding)
        assert close.mean() > (0.98 if dtype == "bfloat16" else 1.0) - 1e-9


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


@pytest.mark.thorough
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
