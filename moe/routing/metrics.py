"""What is measured of a router in every step.

Letters: G groups, S tokens of a group, E experts, K choices of a token.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (total, count); a value is total / count

METRICS: Mapping[str, str] = {
    "load": "[E]: share of the choices sent that each expert was sent, before capacity",
    "dropped_choices": "share of the choices sent that found no slot",
    "dropped_tokens": "share of the tokens that no expert took",
    "entropy": "mean entropy of the router probabilities, nats; ln E is uniform",
    "z": "mean of logsumexp(logits)^2, which the router z-loss keeps small",
    "max_logit": "largest |logit| of a group, mean over groups",
    "second_rate": "choices beyond the first that were sent, per token",
    "gate_mass": "sum of the gates of the choices that found a slot, per token",
    "nonfinite": "tokens whose logits were not finite; they are routed nowhere",
}


def entropy(probs: jax.Array) -> jax.Array:
    """Entropy [...] of probabilities [..., E], in nats; its gradient is finite where one is 0."""
    positive = probs > 0
    return jnp.sum(
        jnp.where(positive, -probs * jnp.log(jnp.where(positive, probs, 1.0)), 0), axis=-1
    )


def routing_metrics(
    logits: jax.Array,
    probs: jax.Array,
    gates: jax.Array,
    valid: jax.Array,
    placed: jax.Array,
    expert: jax.Array,
) -> Sums:
    """All entries of `METRICS` but `z` and `nonfinite`, which `route` adds; no gradient.

    Args:
      logits: float32 [G, S, E].
      probs: float32 [G, S, E].
      gates: float32 [G, S, K], 0 where a choice was not sent or found no slot.
      valid: bool [G, S], False for padding.
      placed: bool [G, S, K], which choices found a slot.
      expert: int32 [G, S, K], the expert of each choice that was sent; E: not sent.

    Returns:
      name -> (total float32 [G, ...], count float32 [G]).
    """
    logits, probs, gates = jax.lax.stop_gradient((logits, probs, gates))
    experts = logits.shape[-1]
    sent = expert < experts

    def total(x: jax.Array) -> jax.Array:  # integers are added as integers
        return jnp.sum(x, axis=tuple(range(1, x.ndim))).astype(jnp.float32)

    index = jnp.arange(experts, dtype=jnp.int32)
    load = jnp.sum(expert[..., None] == index, axis=(1, 2), dtype=jnp.int32).astype(jnp.float32)
    tokens, choices = total(valid), total(sent)
    surprise = jnp.where(valid, entropy(probs), 0.0)  # [G, S]
    later = sent[..., 1:]
    return {
        "load": (load, choices),
        "dropped_choices": (total(sent & ~placed), choices),
        "dropped_tokens": (total(valid & ~jnp.any(placed, axis=-1)), tokens),
        "entropy": (total(surprise), tokens),
        "max_logit": (jnp.max(jnp.abs(logits), axis=(1, 2)), jnp.minimum(tokens, 1.0)),
        "second_rate": (total(later), tokens),
        "gate_mass": (total(gates), tokens),
    }
