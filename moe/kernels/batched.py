"""What the experts compute, on tokens that lie ready by expert.

Letters: E experts, N tokens of each, D model width, F hidden width.

    geglu  y = ((gelu(x gate) * (x up)) [+ or * bias]) down     relu  y = (relu(x up) ...) down
"""

from __future__ import annotations

import jax

from moe.kernels.activation import activate
from trainlib.model.remat import PRODUCT, keep

BIASES = ("none", "additive", "multiplicative")

Weights = dict[str, jax.Array]  # "up" [E, D, F], "down" [E, F, D], maybe "gate", "bias" [E, F]


def hidden(projected: dict[str, jax.Array], bias: jax.Array | None, bias_form: str) -> jax.Array:
    """The hidden vectors [..., F] of experts.

    Args:
      projected: the projections "up" and, when gated, "gate", [..., F].
      bias: what broadcasts to [..., F]; it stands after the activation (ST-MoE, appendix C). None
        where the form is "none".
      bias_form: one of `BIASES`.
    """
    h = activate(projected.get("gate"), projected["up"])
    if bias is None:
        return h
    return h + bias if bias_form == "additive" else h * bias


def batched(
    x: jax.Array, weights: Weights, bias_form: str, hidden_scale: jax.Array | None
) -> jax.Array:
    """Every expert on its own tokens, as one batched matrix product each.

    Args:
      x: [E, N, D].
      weights: in the type of x.
      bias_form: one of `BIASES`.
      hidden_scale: [E, N, F] factor of the hidden vectors (dropout), or None.

    Returns:
      [E, N, D] in the type of x; with F split over devices, the part that this one contributes.
    """
    # Plain products: `einsum` may swap the operands, which costs the CPU a third in transposes.
    names = [name for name in ("gate", "up") if name in weights]
    projected = {name: keep(PRODUCT, x @ weights[name]) for name in names}  # each [E, N, F]
    bias = weights["bias"][:, None] if bias_form != "none" else None
    h = hidden(projected, bias, bias_form)
    return (h if hidden_scale is None else h * hidden_scale) @ weights["down"]
