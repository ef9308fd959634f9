"""The activation functions of dense layers and of experts.

geglu  h = gelu(x gate) * (x up)  (arXiv 2002.05202)        relu  h = relu(x up)
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

ACTIVATIONS = ("geglu", "relu")
_SCALE, _CUBIC = math.sqrt(2.0 / math.pi), 0.044715


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function in its tanh form, as T5 v1.1 has it.

    The derivative is written out in what the value computes already. Left to differentiation it is
    twice the arithmetic, and the TPU compiler then makes a pass of its own of it, over every hidden
    vector, in place of the end of the matrix product before it.

    Args:
      x: float32 [...].

    Returns:
      float32 [...], equal to `jax.nn.gelu(x, approximate=True)`.
    """
    return x * _cdf(x)


def _cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.tanh(_SCALE * (x + _CUBIC * x**3)))


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    cdf = _cdf(x)
    y = x * cdf
    # 1 - tanh(u)^2 = 4 cdf (1 - cdf)
    slope = cdf + y * (1.0 - cdf) * (2.0 * _SCALE + (6.0 * _SCALE * _CUBIC) * (x * x))
    return y, slope * dx


def activate(gate: jax.Array | None, up: jax.Array) -> jax.Array:
    """The hidden vectors from their one or two projections.

    GELU is the tanh form of T5 v1.1 and is computed in float32, as is everything exponentiated.

    Args:
      gate: [..., F], the projection that GELU is applied to; None takes ReLU of `up`.
      up: [..., F].

    Returns:
      [..., F] in the type of `up`.
    """
    if gate is None:
        return jax.nn.relu(up)
    return gelu(gate.astype(jnp.float32)).astype(up.dtype) * up
