"""The end of a residual block: its branch, what goes past it, and a ReLU of their sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from trainlib.sharding.constrain import platform


def add_relu(x: jax.Array, y: jax.Array) -> jax.Array:
    """relu(x + y) of two maps of the same shape and type.

    XLA makes a ReLU anew wherever it is read rather than reading it, for of two operands one is a
    constant, and with it the sum and the sums before it: on CPU the sixth block of a stage added up
    all blocks before it, three times. Of a sum of two maps it keeps the result, and
    relu(x + y) = max(y, -x) + x, to the last bit.
    """
    return _sum(x, y) if platform() == "cpu" else jax.nn.relu(x + y)


@jax.custom_vjp
def _sum(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.maximum(y, -x) + x


def _forward(x, y):
    out = _sum(x, y)
    return out, out


def _backward(out, g):
    g = jnp.where(out > 0, g, jnp.zeros_like(g))
    return g, g


_sum.defvjp(_forward, _backward)
