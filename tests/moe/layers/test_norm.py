"""RMSNorm against NumPy in float64, in both types, with its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from moe.layers.norm import RMSNorm, rms_normalise
from trainlib.model import weights as nn


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 1e-2)])
def test_norm_is_its_formula(dtype, tolerance):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 7)) * 30 + 4, dtype)
    scale = rng.normal(size=7).astype(np.float32)
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * scale
    actual = nn.abstract(RMSNorm(7)).bind({"scale": scale}, {})(x)
    assert actual.dtype == dtype
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=tolerance, atol=1e-6)


def test_gradient():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)), jnp.float32)
    check_grads(rms_normalise, (x, jnp.linspace(0.5, 2, 5)), 1, ["rev"], atol=1e-2, rtol=1e-2)


def test_without_scale_it_has_no_weight_and_a_zero_vector_stays_zero():
    module = nn.abstract(RMSNorm(4, use_scale=False))
    assert module.params == {}
    assert not np.any(module.bind({}, {})(jnp.zeros((2, 4))))
    gradient = jax.grad(lambda x: rms_normalise(x, None).sum())(jnp.zeros((2, 4)))
    assert np.all(np.isfinite(gradient))
