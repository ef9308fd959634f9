"""The dense feed-forward layer, GEGLU (arXiv 2002.05202) or ReLU, no biases.

Letters: B batch, L length, D model width, F hidden width.

    geglu: y = (gelu(x gate) * (x up)) down        relu: y = relu(x up) down
"""

from __future__ import annotations

import jax
from flax import nnx

from moe.kernels.activation import activate
from moe.layers.dropout import dropout
from moe.layers.init import scaled_fan_in
from moe.layers.product import projected
from moe.layers.residual import to_layer, to_residual
from trainlib.model.layer import Layer
from trainlib.model.remat import PRODUCT, keep
from trainlib.model.weights import declare
from trainlib.sharding.constrain import constrain


class FeedForward(Layer):
    """[B, L, D] -> [B, L, D]; hidden units lie over the mesh axis `model`.

    Args:
      d_model: D.
      d_ff: F.
      activation: "geglu" or "relu", see `moe.kernels.activation`.
      init_scale: see `scaled_fan_in`.
      dropout_rate: of the hidden vector.
      reduce: see `product`.
      rngs: see `trainlib.model.weights.declare`.
    """

    lora_scale = 1.0  # of adapters, see `moe.layers.product.projected`

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: str = "geglu",
        init_scale: float = 1.0,
        dropout_rate: float = 0.0,
        reduce: str = "float32",
        rngs: nnx.Rngs | None = None,
    ):
        self.dropout_rate, self.reduce = dropout_rate, reduce
        init = scaled_fan_in(init_scale)
        self.gated = activation == "geglu"
        if self.gated:
            self.gate = declare((d_model, d_ff), ("embed", "mlp"), init, rngs)
        self.up = declare((d_model, d_ff), ("embed", "mlp"), init, rngs)
        self.down = declare((d_ff, d_model), ("mlp", "embed"), init, rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B, L, D] -> [B, L, D] in the type of x; `key` None switches dropout off."""
        x = to_layer(x)
        gate = keep(PRODUCT, projected(self, "gate", x)) if self.gated else None
        hidden = activate(gate, keep(PRODUCT, projected(self, "up", x)))  # [B, L, F]
        hidden = constrain(hidden, "layer_batch", None, "mlp")
        hidden = dropout(hidden, self.dropout_rate, key)
        return keep(PRODUCT, to_residual(projected(self, "down", hidden)))
