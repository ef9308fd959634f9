"""Policies of recomputation: equal gradients, and less arithmetic the more is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import ConfigError
from trainlib.model.flops import flops
from trainlib.model.remat import EXCHANGED, POLICIES, PRODUCT, SCORES, keep, recomputed

HERE = tuple(name for name in POLICIES if name != "offload")  # CPUs have no memory of another kind
B, L, D = 2, 4, 8


def block(x, w):
    """Products with a weight, among tokens (as attention), and an exchange in between."""
    y = keep(EXCHANGED, jnp.tanh(keep(PRODUCT, x @ w)))
    scores = keep(SCORES, jnp.einsum("bqd,bkd->bqk", y, y))
    mixed = keep(SCORES, jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), y))
    return x + keep(PRODUCT, mixed @ w.T)


def loss(policy):
    body = recomputed(block, policy, in_loop=True)

    def run(w, x):
        def step(x, w):
            return body(x, w), None

        return jnp.sum(jnp.square(jax.lax.scan(step, x, w)[0]))

    return run


def test_gradients_do_not_depend_on_the_policy():
    w = jax.random.normal(jax.random.key(0), (3, D, D)) / D**0.5
    x = jax.random.normal(jax.random.key(1), (B, L, D))
    expected = jax.grad(loss("none"))(w, x)
    for policy in HERE:
        actual = jax.grad(loss(policy))(w, x)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=policy)


def test_more_is_computed_again_the_less_is_kept():
    """Multiply-adds of a block: 2 B L D D with weights, 2 B L L D among tokens, twice in the
    backward pass; what a policy drops is made once more.
    """
    w = jax.ShapeDtypeStruct((3, D, D), jnp.float32)
    x = jax.ShapeDtypeStruct((B, L, D), jnp.float32)
    count = {name: flops(jax.grad(loss(name)), w, x) // 2 // 3 for name in HERE}
    weights, scores = B * L * D * D, B * L * L * D
    forward = 2 * weights + 2 * scores
    assert count["none"] == 3 * forward
    assert count["dots"] == count["none"]
    assert count["minimal"] == count["none"] + 2 * scores  # the last product's input is one of them
    # The derivative of tanh needs what it made before that was sent: one product more.
    assert count["exchange"] == count["full"] == count["minimal"] + weights


def test_a_policy_that_does_not_exist():
    with pytest.raises(ConfigError, match="Did you mean 'minimal'"):
        recomputed(block, "minmal", in_loop=True)
