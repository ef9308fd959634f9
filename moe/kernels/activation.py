"""The activation functions of dense layers and of experts.

geglu  h = gelu(x gate) * (x up)  (arXiv 2002.05202)        relu  h = relu(x up)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

ACTIVATIONS = ("geglu", "relu")


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
    return jax.nn.gelu(gate.astype(jnp.float32), approximate=True).astype(up.dtype) * up
