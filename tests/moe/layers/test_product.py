"""Products with weights: in which type their gradients leave a device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.embed import Output
from moe.layers.ffn import FeedForward
from trainlib.model import weights as nn


@pytest.mark.parametrize(("reduce", "expected"), [("float32", 257.0), ("bfloat16", 256.0)])
def test_gradients_leave_a_device_in_the_type_that_was_asked_for(reduce, expected):
    """257 ones: bfloat16 has no such number."""
    layer = nn.abstract(FeedForward(1, 1, activation="relu", reduce=reduce))
    ones = {"up": jnp.ones((1, 1)), "down": jnp.ones((1, 1))}
    x = jnp.ones((1, 257, 1), jnp.bfloat16)

    def total(weights):
        return layer.bind(weights, {})(x).astype(jnp.float32).sum()

    assert float(jax.grad(total)(ones)["down"][0, 0]) == expected


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_ways_of_adding_gradients_agree(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5)).astype(dtype)
    upstream = jax.random.normal(jax.random.key(1), (2, 3, 7))
    found = {}
    for reduce in ("float32", "bfloat16"):
        layer = nn.abstract(Output(5, 7, reduce=reduce))
        kernel = jax.random.normal(jax.random.key(2), (5, 7))
        logits, pull = jax.vjp(lambda x, w, m=layer: m.bind({"kernel": w}, {})(x), x, kernel)
        assert logits.dtype == jnp.float32
        found[reduce] = logits, *pull(upstream)
    for first, second in zip(*found.values(), strict=True):
        assert first.dtype == second.dtype
        tolerance = 1e-6 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(
            np.asarray(first, np.float32), np.asarray(second, np.float32), atol=4 * tolerance
        )


def test_on_a_cpu_the_gradient_of_a_matrix_reads_tokens_as_they_lie():
    """A product that wants them transposed writes them out so first: [4, 96] of [2, 48, 4]."""
    layer = nn.abstract(Output(4, 8))
    x, weights = jnp.ones((2, 48, 4)), {"kernel": jnp.ones((4, 8))}

    def total(weights, x):
        return jnp.sum(layer.bind(weights, {})(x) ** 2)

    text = jax.jit(jax.grad(total)).lower(weights, x).compile().as_text()
    assert "f32[96,4]" in text
    assert "f32[4,96]" not in text
