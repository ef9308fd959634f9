"""Focal and Huber loss and their gradients against formulas in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitattn.detection.objective.losses import focal, huber

B, H, W, A, C = 2, 3, 5, 3, 7


def sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -x))


def focal_reference(logits, classes, alpha, gamma):
    """Loss of each logit and its derivative, float64 [B, h, w, A, C]."""
    x = np.asarray(logits, np.float64).reshape(*classes.shape, -1)
    present = classes[..., None] == np.arange(x.shape[-1])
    u = np.where(present, -x, x)
    weight = np.where(present, alpha, 1 - alpha) * (classes >= -1)[..., None]
    power, entropy = np.exp(-gamma * np.logaddexp(0.0, -u)), np.logaddexp(0.0, u)
    slope = power * (gamma * sigmoid(-u) * entropy + sigmoid(u)) * np.where(present, -1, 1)
    return weight * power * entropy, weight * slope


def sample(seed=0, scale=4.0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(B, H, W, A * C))
    classes = rng.integers(-2, C, (B, H, W, A))
    return logits.astype(np.float32), classes.astype(np.int32)


@pytest.mark.thorough
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
def test_focal_loss_and_gradient(gamma):
    logits, classes = sample()
    loss, slope = focal_reference(logits, classes, 0.25, gamma)
    value, gradient = jax.value_and_grad(focal)(jnp.asarray(logits), classes, 0.25, gamma)
    np.testing.assert_allclose(value, loss.sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, slope.reshape(logits.shape), rtol=1e-4, atol=1e-6)


def test_the_slope_of_the_reference_is_that_of_its_loss():
    logits, classes = sample(1)
    step = 1e-4
    ends = [focal_reference(logits.astype(float) + s, classes, 0.25, 1.5)[0] for s in (step, -step)]
    slope = focal_reference(logits, classes, 0.25, 1.5)[1]
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, atol=1e-6)


def test_gamma_0_and_one_class_is_cross_entropy():
    logits = jnp.asarray([[[[0.3, -0.7]]]])  # two anchors
    loss = focal(logits, jnp.asarray([[[[0, -1]]]]), 0.5, 0.0)
    expected = 0.5 * (np.log1p(np.exp(-0.3)) + np.log1p(np.exp(-0.7)))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 1e4), (jnp.bfloat16, 300.0)])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5])
def test_focal_loss_of_large_logits(dtype, size, gamma):
    """Every answer, right and wrong, as far out as 1e4: finite, and that of the formula."""
    logits, classes = sample(2)
    logits = np.where(logits > 0, size, -size).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(focal), static_argnums=(2, 3))(
        jnp.asarray(logits, dtype), classes, 0.25, gamma
    )
    loss, slope = focal_reference(np.asarray(jnp.asarray(logits, dtype)), classes, 0.25, gamma)
    assert gradient.dtype == dtype
    np.testing.assert_allclose(value, loss.sum(), rtol=1e-5)
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), slope.reshape(logits.shape), rtol=1e-2, atol=1e-6
    )


def test_focal_loss_in_bfloat16():
    logits, classes = sample(3)
    narrow = jnp.asarray(logits, jnp.bfloat16)
    loss, slope = focal_reference(np.asarray(narrow, np.float32), classes, 0.25, 1.5)
    value, gradient = jax.value_and_grad(focal)(narrow, classes, 0.25, 1.5)
    np.testing.assert_allclose(value, loss.sum(), rtol=1e-5)
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), slope.reshape(logits.shape), rtol=1e-2, atol=1e-6
    )


def test_ignored_anchors_may_be_broken():
    logits, classes = sample(4)
    apart = logits.reshape(*classes.shape, C).copy()
    apart[classes == -2] = np.nan
    value, gradient = jax.value_and_grad(focal)(
        jnp.asarray(apart.reshape(logits.shape)), classes, 0.25, 1.5
    )
    np.testing.assert_allclose(value, focal(jnp.asarray(logits), classes, 0.25, 1.5), rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient.reshape(apart.shape)[classes == -2].any()


def test_a_broken_logit_that_counts_is_seen():
    logits, classes = sample(5)
    logits[0, 0, 0, 0], classes[0, 0, 0, 0] = np.nan, -1
    assert np.isnan(focal(jnp.asarray(logits), classes, 0.25, 1.5))


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_huber_loss_and_gradient(delta):
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(B, H, W, A * 4)).astype(np.float32)
    targets = rng.normal(size=(B, H, W, A, 4)).astype(np.float32)
    targets[0, 0, 0] = 0  # targets of 0 count as any
    positive = rng.random((B, H, W, A)) < 0.5
    positive[0, 0, 0] = True
    d = offsets.reshape(targets.shape).astype(float) - targets
    each = np.where(np.abs(d) <= delta, d**2 / 2, delta * (np.abs(d) - delta / 2))
    slope = np.clip(d, -delta, delta) * positive[..., None]
    broken = np.where(np.repeat(positive, 4, -1), offsets, np.nan)
    for given in (offsets, broken):
        value, gradient = jax.value_and_grad(functools.partial(huber, delta=delta))(
            jnp.asarray(given), targets, positive
        )
        np.testing.assert_allclose(value, each[positive].sum(), rtol=1e-5)
        np.testing.assert_allclose(gradient, slope.reshape(offsets.shape), atol=1e-6)
