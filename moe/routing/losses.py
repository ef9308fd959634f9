"""The auxiliary losses of a router: load balance, z-loss and entropy (ST-MoE, arXiv 2202.08906,
section 3 and appendices A and J).

Letters: G groups, S tokens of a group, E experts, K choices of a token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe.routing.config import RoutingConfig, check_routing
from moe.routing.metrics import Sums

EPSILON = 1e-9  # beside sums of probabilities that others are divided by, as in Mesh TensorFlow


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
    weights = {
        "balance": config.balance_loss_weight,
        "z": config.z_loss_weight,
        "entropy": config.entropy_loss_weight,
    }
    total = jnp.zeros((), jnp.float32)
    for name, weight in weights.items():
        if not weight:
            continue
        value, count = losses[name]
        each = value / jnp.maximum(count, 1.0)
        total += weight * (jnp.sum(each) if config.loss_reduction == "sum" else jnp.mean(each))
    broken = jnp.sum(losses["nonfinite"][0])
    return jnp.where(broken > 0, jnp.nan, total)


def balance_loss(
    shares: jax.Array,
    best: jax.Array,
    valid: jax.Array,
    config: RoutingConfig,
    *,
    length: int = 0,
    axes: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """E * sum_i f_i P_i over the tokens of a group (ST-MoE, appendix A), of a sequence or of the
    batch; 0 without tokens.

    f_i is the share of tokens whose first choice (or any choice) is i, P_i the mean probability.
    With `later_balance_weight` the same is added for each later choice k, where f_i counts choice k
    and P_i is the mean probability among the experts that choices before k left.

    Args:
      shares: float32 [G, S, E], probabilities.
      best: int32 [G, S, K], the best experts of each token.
      valid: bool [G, S], False for padding.
      config: says which choices count, and which tokens have one loss.
      length: see `moe.routing.route.route`.
      axes: see there.

    Returns:
      (total, count), float32 [G], or one entry a sequence: their sums over all groups and devices
      are the sum of the losses and the number of them.
    """
    if config.balance_over == "sequence" and length:
        shares, best, valid = (v.reshape(-1, length, *v.shape[2:]) for v in (shares, best, valid))
    tokens = jnp.sum(valid, axis=-1)  # [G]
    every = tokens
    if config.balance_over == "batch":
        every = _over_batch(tokens, axes)
    count = jnp.maximum(every, 1).astype(jnp.float32)

    def imbalance(shares: jax.Array, counted: jax.Array) -> jax.Array:
        """E * sum_i f_i P_i, [G], where f counts the choices [G, S, n]."""
        experts = shares.shape[-1]
        hits = jnp.where(valid[..., None], counted, experts)
        index = jnp.arange(experts, dtype=jnp.int32)
        # Integer counts: a float32 sum of ones stops at 2**24.
        share = jnp.sum(hits[..., None] == index, axis=(1, 2), dtype=jnp.int32)  # [G, E]
        if config.balance_over == "batch":
            share = _over_batch(share, axes)
        mass = jnp.sum(jnp.where(valid[..., None], shares, 0.0), axis=1)  # [G, E]
        return experts * jnp.sum(share.astype(jnp.float32) * mass, axis=-1) / jnp.square(count)

    total = imbalance(shares, best if config.balance_choices == "all" else best[..., :1])
    if config.later_balance_weight:
        for choice in range(1, best.shape[-1]):
            left = _without(shares, best[..., :choice])
            later = imbalance(left, best[..., choice : choice + 1])
            total += config.later_balance_weight * later
    if config.balance_over == "batch":
        return total, tokens.astype(jnp.float32) / count
    return total, jnp.minimum(tokens, 1).astype(jnp.float32)


def _over_batch(counts: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Counts [G, ..] of a device added up over all groups and devices.

    The loss is linear in the probabilities: with the counts of the whole batch in place of its own,
    what each group adds is a part of the one loss, and no gradient crosses devices.
    """
    whole = jnp.sum(counts, axis=0)
    return jax.lax.psum(whole, axes) if axes else whole


def _without(shares: jax.Array, taken: jax.Array) -> jax.Array:
    """The probabilities [G, S, E] among the experts that are not `taken` [G, S, n]."""
    index = jnp.arange(shares.shape[-1], dtype=jnp.int32)
    left = jnp.where(jnp.any(taken[..., None] == index, axis=-2), 0.0, shares)
    return left / (jnp.sum(left, axis=-1, keepdims=True) + EPSILON)
