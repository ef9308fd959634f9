"""What the experts compute, on rows that stand ready.

Letters: E experts, N rows of each, D model width, F hidden width.

    geglu  y = ((gelu(x gate) * (x up)) [+ or * bias]) down     relu  y = (relu(x up) ...) down
"""

from __future__ import annotations

from typing import Any

import jax

from moe.layers.ffn import activate
from trainlib.model.remat import PRODUCT, keep

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
      rows: [E, N, D].
      weights: in the type of rows.
      form: of the bias.
      kept: [E, N, F] factor of the hidden vectors (dropout), or None.

    Returns:
      [E, N, D]; with F split over columns, the part that this column contributes.
    """
    # Plain products: `einsum` may swap the operands, which costs the CPU a third in transposes.
    names = [name for name in ("gate", "up") if name in weights]
    pre = {name: keep(PRODUCT, rows @ weights[name]) for name in names}
    h = hidden(pre, weights["bias"][:, None] if form != "none" else None, form)
    return (h if kept is None else h * kept) @ weights["down"]
