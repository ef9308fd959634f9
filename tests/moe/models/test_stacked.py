"""Stacked weights: shapes, axes, and initialisers that see one layer at a time."""

from __future__ import annotations

import jax
import numpy as np

from moe.layers.ffn import FeedForward
from moe.models.stacked import stack
from trainlib.model import weights as nn


def test_a_stack_is_declared_with_leading_axes_and_each_layer_with_its_own_fan_in():
    specs = nn.abstract(stack(FeedForward(50, 80, init_scale=0.1), (2, 3), ("period", "layer")))
    spec = specs.params["up"]
    assert (spec.shape, spec.axes) == ((2, 3, 50, 80), ("period", "layer", "embed", "mlp"))
    values = np.asarray(nn.initialise({"up": spec}, jax.random.key(0))["up"])
    deviations = values.std((2, 3)) / (0.8796 * (0.1 / 50) ** 0.5)  # see test_ffn
    np.testing.assert_allclose(deviations, np.ones((2, 3)), rtol=0.05)
    flat = values.reshape(6, -1)
    correlation = np.corrcoef(flat) - np.eye(6)
    assert np.abs(correlation).max() < 0.1  # layers are drawn with keys of their own


def test_equal_stacks_share_one_initialiser():
    """So that a model of many layers compiles few initialisers."""
    first, second = (stack(FeedForward(4, 4), (2,), ("layer",)) for _ in range(2))
    assert nn.abstract(first).params["up"].init is nn.abstract(second).params["down"].init
