"""What the experts compute, on rows that stand ready.

Letters: E experts, N rows of each, D model width, F hidden width, M parts from mesh columns.

    geglu  y = ((gelu(x gate) * (x up)) [+ or * bias]) down     relu  y = (relu(x up) ...) down
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from moe.layers.ffn import activate

BIASES = ("none", "additive", "multiplicative")

Weights = dict[str, jax.Array]  # "up" [E, D, F], "down" [E, F, D], maybe "gate", "bias" [E, F]


def hidden(pre: dict[str, jax.Array], bias: Any, form: str) -> jax.Array:
    """The hidden vectors from the projections `up` and, when gated, `gate`.

    The bias stands after the activation (ST-MoE, appendix C); `form` is one of `BIASES`.
    """
    h = activate(pre.get("gate"), pre["up"])
    if form == "none":
        return h
    return h + bias if form == "additive" else h * bias


def batched(rows: jax.Array, weights: Weights, form: str, kept: jax.Array | None) -> jax.Array:
    """Every expert on its own rows, as one batched matrix product each.

    Args:
      rows: [M, E, N, D].
      weights: in the type of rows.
      form: of the bias.
      kept: [M, E, N, F] factor of the hidden vectors (dropout), or None.

    Returns:
      [M, E, N, D]; with F split over columns, the part that this column contributes.
    """
    pre = {
        name: jnp.einsum("mend,edf->menf", rows, weights[name])
        for name in ("gate", "up")
        if name in weights
    }
    bias = weights["bias"][None, :, None] if form != "none" else None
    h = hidden(pre, bias, form)
    if kept is not None:
        h = h * kept
    return jnp.einsum("menf,efd->mend", h, weights["down"])
