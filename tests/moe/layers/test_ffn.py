"""The dense feed-forward layer against NumPy, its types and its gradients."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels.activation import gelu as our_gelu
from moe.layers.dropout import dropout
from moe.layers.ffn import FeedForward
from moe.layers.init import scaled_fan_in
from trainlib.model import weights as nn


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_the_derivative_of_gelu_is_as_exact_as_that_of_jax():
    """By the largest error against float64, 4e-6 to 1e-5; the values are equal to the bit."""
    x = jnp.linspace(-12, 12, 2001)
    plain = functools.partial(jax.nn.gelu, approximate=True)
    np.testing.assert_array_equal(our_gelu(x), plain(x))
    wide = np.float64(x)
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = np.tanh(scale * (wide + cubic * wide**3))
    want = 0.5 * (1 + t) + 0.5 * wide * (1 - t**2) * scale * (1 + 3 * cubic * wide**2)
    ours, theirs = (np.abs(jax.vmap(jax.grad(f))(x) - want).max() for f in (our_gelu, plain))
    assert ours <= 1.5 * theirs <= 2e-5


def reference(weights, x, activation):
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    x = np.asarray(x, np.float64)
    hidden = np.maximum(x @ w["up"], 0)
    if activation == "geglu":
        hidden = gelu(x @ w["gate"]) * (x @ w["up"])
    return hidden @ w["down"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
@pytest.mark.parametrize("activation", ["geglu", "relu"])
def test_layer_is_its_formula(activation, dtype, tolerance):
    layer = nn.abstract(FeedForward(5, 11, activation=activation))
    weights = nn.initialise(layer.params, jax.random.key(0))
    assert sorted(weights) == (["down", "gate", "up"] if activation == "geglu" else ["down", "up"])
    x = jax.random.normal(jax.random.key(1), (2, 3, 5)).astype(dtype)
    actual = layer.bind(weights, {})(x)
    assert actual.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), reference(weights, x, activation), atol=tolerance
    )


def test_gradient_is_that_of_the_formula():
    layer = nn.abstract(FeedForward(3, 4))
    weights = nn.initialise(layer.params, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 2, 3))
    grads = jax.grad(lambda w: layer.bind(w, {})(x).sum())(weights)
    for name, value in weights.items():
        for index in np.ndindex(value.shape):
            step = np.zeros(value.shape)
            step[index] = 1e-6
            moved = [
                reference(
                    {**weights, name: np.asarray(value, np.float64) + sign * step}, x, "geglu"
                )
                for sign in (1, -1)
            ]
            slope = (moved[0] - moved[1]).sum() / 2e-6
            np.testing.assert_allclose(grads[name][index], slope, atol=1e-4)


def test_initialiser_counts_the_fan_in_of_one_matrix():
    """sqrt(0.1 / fan-in), cut at two deviations, which leaves 0.8796 of the deviation."""
    made = scaled_fan_in(0.1)(jax.random.key(0), (6, 4, 50, 200))
    sigma = (0.1 / 50) ** 0.5
    assert float(jnp.abs(made).max()) <= 2 * sigma + 1e-7
    np.testing.assert_allclose(made.std(), 0.8796 * sigma, rtol=0.01)
    assert scaled_fan_in(0.1) is scaled_fan_in(0.1)  # one compilation for all weights of a kind


def test_dropout_keeps_the_mean_and_is_one_draw_a_sequence():
    x = jnp.ones((64, 7, 200))
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    np.testing.assert_allclose((y == 0).mean(), 0.25, atol=0.015)
    assert dropout(x, 0.25, None) is x
