"""Cross entropy against NumPy, its gradient, padding, and extreme logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.model.losses import mean, softmax_cross_entropy


def reference(logits, labels, smoothing):
    """Loss and gradient of each row in f64, from the definition with an explicit target."""
    logits = logits.astype("f8")
    classes = logits.shape[-1]
    target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    shifted = logits - logits.max(-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -(target * logp).sum(-1), np.exp(logp) - target


@pytest.mark.sample(3)
@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (3, 4, 11)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_and_gradients(shape, smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=shape).astype("f4") * 3
    labels = rng.integers(shape[-1], size=shape[:-1])
    weights = rng.choice([0.0, 1.0, 0.5], size=shape[:-1]).astype("f4")
    losses, slopes = reference(logits, labels, smoothing)

    def loss(logits):
        return softmax_cross_entropy(logits, labels, jnp.asarray(weights), smoothing)

    (total, weight), pull = jax.vjp(loss, jnp.asarray(logits))
    np.testing.assert_allclose(total, (weights * losses).sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weight, weights.sum())
    (gradient,) = pull((jnp.float32(1), jnp.float32(0)))
    np.testing.assert_allclose(gradient, weights[..., None] * slopes, rtol=1e-5, atol=1e-6)


def test_no_weights_is_all_ones():
    logits, labels = jnp.zeros((4, 10)), jnp.arange(4)
    total, weight = softmax_cross_entropy(logits, labels)
    np.testing.assert_allclose(total, 4 * np.log(10), rtol=1e-6)
    assert weight == 4


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_adds_nothing_whatever_stands_there(poison, smoothing):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5, 6)).astype("f4")
    labels = np.array([0, 5, 2, 1, 3])

    def value_and_gradient(logits, labels, weights):
        def loss(x):
            return softmax_cross_entropy(x, labels, weights, smoothing)[0]

        return jax.jit(jax.value_and_grad(loss))(logits)

    expected, slope = value_and_gradient(logits[:3], labels[:3], jnp.ones(3))
    logits[3:] = poison
    labels[3:] = (-1, 10**6)
    total, gradient = value_and_gradient(logits, labels, jnp.array([1.0, 1, 1, 0, 0]))
    assert total == expected
    np.testing.assert_array_equal(gradient, np.concatenate([slope, np.zeros((2, 6))]))


def test_nan_in_a_counted_row_is_not_hidden():
    logits = jnp.zeros((2, 3)).at[0, 1].set(jnp.nan)
    assert jnp.isnan(softmax_cross_entropy(logits, jnp.zeros(2, int))[0])


def test_bf16_logits_are_summed_in_f32():
    # 4,096 rows of log 2: a sum in bf16 stops growing long before.
    total, weight = softmax_cross_entropy(
        jnp.zeros((4096, 2), jnp.bfloat16), jnp.zeros(4096, int), jnp.ones(4096, jnp.bfloat16)
    )
    assert total.dtype == weight.dtype == jnp.float32
    np.testing.assert_allclose(total / weight, np.log(2), rtol=1e-6)
    assert weight == 4096


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [300.0, 1e4, 1e37])
def test_extreme_logits_stay_finite(dtype, size):
    logits = jnp.array([[size, -size, 0.0], [-size, size, size]], dtype)
    labels = jnp.array([1, 0])

    def loss(x):
        return softmax_cross_entropy(x, labels, None, 0.1)[0]

    value, gradient = jax.value_and_grad(loss)(logits)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_mean_of_nothing_is_zero_with_zero_gradient():
    value, slope = jax.value_and_grad(mean)(jnp.float32(0), jnp.float32(0))
    assert (value, slope) == (0, 0)
    value, slope = jax.value_and_grad(mean)(jnp.float32(6), jnp.float32(4))
    assert (value, slope) == (1.5, 0.25)


def test_a_batch_of_padding_only_has_loss_and_gradient_zero():
    def loss(x):
        return mean(*softmax_cross_entropy(x, jnp.zeros(3, int), jnp.zeros(3)))

    value, gradient = jax.value_and_grad(loss)(jnp.full((3, 4), jnp.nan))
    assert value == 0
    assert not gradient.any()
