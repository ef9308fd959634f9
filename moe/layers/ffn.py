"""The dense feed-forward layer, GEGLU (arXiv 2002.05202) or ReLU, no biases.

Letters: B batch, L length, D model width, F hidden width.

    geglu: y = (gelu(x gate) * (x up)) down        relu: y = relu(x up) down
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from moe.layers.weights import dropout, product, scaled_fan_in, to_batch, to_rows
from trainlib.model.remat import PRODUCT, keep
from trainlib.model.weights import declare
from trainlib.sharding.constrain import constrain

ACTIVATIONS = ("geglu", "relu")


def activate(gate: jax.Array | None, up: jax.Array) -> jax.Array:
    """The hidden vector from its one or two projections, in their type.

    GELU is the tanh form of T5 v1.1 and is computed in float32, as is everything exponentiated.
    """
    if gate is None:
        return jax.nn.relu(up)
    return jax.nn.gelu(gate.astype(jnp.float32), approximate=True).astype(up.dtype) * up


class FeedForward(nnx.Module):
    """[B, L, D] -> [B, L, D]; hidden units lie over the mesh columns.

    Args:
      d_model: D.
      d_ff: F.
      activation: one of `ACTIVATIONS`.
      init_scale: see `scaled_fan_in`.
      dropout_rate: of the hidden vector.
      reduce: see `product`.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: str = "geglu",
        init_scale: float = 1.0,
        dropout_rate: float = 0.0,
        reduce: str = "float32",
    ):
        self.dropout_rate, self.reduce = dropout_rate, reduce
        init = scaled_fan_in(init_scale)
        self.gated = activation == "geglu"
        if self.gated:
            self.gate = declare((d_model, d_ff), ("embed", "mlp"), init)
        self.up = declare((d_model, d_ff), ("embed", "mlp"), init)
        self.down = declare((d_ff, d_model), ("mlp", "embed"), init)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        x = to_rows(x)
        gate = keep(PRODUCT, product(x, self.gate, self.reduce)) if self.gated else None
        hidden = activate(gate, keep(PRODUCT, product(x, self.up, self.reduce)))
        hidden = constrain(hidden, "rows", None, "mlp")
        hidden = dropout(hidden, self.dropout_rate, key)
        return keep(PRODUCT, to_batch(product(hidden, self.down, self.reduce)))
