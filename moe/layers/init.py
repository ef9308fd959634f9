"""How the layers of this family initialise their weights.

Matrices are stored [..., in, out], so the fan-in is always the second dimension from the end;
dimensions in front of it (layers of a stack, experts) do not count.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from trainlib.model.weights import Initializer

ONES = jax.nn.initializers.ones
ZEROS = jax.nn.initializers.zeros
NORMAL = jax.nn.initializers.normal(1.0)  # embedding tables


@functools.cache
def scaled_fan_in(scale: float) -> Initializer:
    """Truncated normal with standard deviation sqrt(scale / fan-in), cut at two of them.

    Switch Transformer (arXiv 2101.03961, section 2.4) and ST-MoE use scale 0.1; the deviation is
    that of the normal before it is cut, as in the paper's words. The same scale gives the same
    function object: `trainlib.model.weights.initialise` compiles each initialiser once.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        deviation = (scale / shape[-2]) ** 0.5
        return deviation * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return init
