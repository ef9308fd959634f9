"""The auxiliary losses of a router: load balance and z-loss (ST-MoE, section 3 and appendix A).

Letters: G groups, S tokens of a group, E experts, K choices of a token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe.routing.config import RoutingConfig, check_routing
from moe.routing.metrics import Sums


def auxiliary_loss(losses: Sums, config: RoutingConfig) -> jax.Array:
    """The weighted router losses as one scalar, to be added to the cross-entropy (ST-MoE, arXiv
    2202.08906, equation 6).

    Example:
      >>> y, out = layer(x, train=True, key=key)
      >>> loss = cross_entropy + moe.auxiliary_loss(out.losses, layer.routing)

    Args:
      losses: name -> (total, count), the `losses` of a `SparseOutput` or a `Routing`; those of
        several layers are stacked along any leading axes.
      config: the weights, and "sum" or "mean" over layers.

    Returns:
      float32 scalar; NaN when a layer met logits that were not finite, so that the train step
      skips its update and counts it.
    """
    check_routing("auxiliary_loss", config)
    weights = {"balance": config.balance_loss_weight, "z": config.z_loss_weight}
    total = jnp.zeros((), jnp.float32)
    for name, weight in weights.items():
        value, count = losses[name]
        each = value / jnp.maximum(count, 1.0)
        total += weight * (jnp.sum(each) if config.loss_reduction == "sum" else jnp.mean(each))
    broken = jnp.sum(losses["nonfinite"][0])
    return jnp.where(broken > 0, jnp.nan, total)


def balance_loss(
    probs: jax.Array, best: jax.Array, valid: jax.Array, config: RoutingConfig
) -> jax.Array:
    """E * sum_i f_i P_i over the tokens of a group (ST-MoE, appendix A); 0 without tokens.

    f_i is the share of tokens whose first choice (or any choice) is i, P_i the mean probability.

    Args:
      probs: float32 [G, S, E].
      best: int32 [G, S, K], the best experts of each token.
      valid: bool [G, S], False for padding.
      config: says which choices count.

    Returns:
      float32 [G].
    """
    experts = probs.shape[-1]
    counted = best if config.balance_choices == "all" else best[..., :1]
    hits = jnp.where(valid[..., None], counted, experts)  # [G, S, 1 or K]
    index = jnp.arange(experts, dtype=jnp.int32)
    # Integer counts: a float32 sum of ones stops at 2**24.
    share = jnp.sum(hits[..., None] == index, axis=(1, 2), dtype=jnp.int32).astype(jnp.float32)
    tokens = jnp.maximum(jnp.sum(valid, axis=-1), 1).astype(jnp.float32)
    mass = jnp.sum(jnp.where(valid[..., None], probs, 0.0), axis=1)  # [G, E]
    return experts * jnp.sum(share * mass, axis=-1) / jnp.square(tokens)
