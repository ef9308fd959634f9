"""Losses as sums and weights, so that parts of a batch add up exactly. B... any leading dimensions,
C classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy with integer labels, summed, in f32 whatever the type of the logits.

    loss = -sum_c q_c log softmax(logits)_c with q = (1 - a) onehot(label) + a / C (label smoothing
    a, arXiv 1512.00567, section 7).

    Args:
      logits: [B..., C], any float type.
      labels: [B...] integers in [0, C); what stands in examples of weight 0 does not matter.
      weights: [B...] not negative; 0 marks padding, and such a row adds nothing to loss or gradient
        even if its logits are NaN. None: all 1.
      label_smoothing: a in [0, 1).

    Returns:
      (sum of weight * loss, sum of weights), f32 scalars. Divide with `mean` after all parts are
      added.
    """
    weights = jnp.ones(labels.shape) if weights is None else weights.astype(jnp.float32)
    counted = weights > 0
    # Masked before the arithmetic, not after: 0 * NaN is NaN, in the gradient too.
    logits = jnp.where(counted[..., None], logits.astype(jnp.float32), 0.0)
    labels = jnp.where(counted, labels, 0)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    target = (1.0 - label_smoothing) * picked
    if label_smoothing:
        target += label_smoothing * jnp.mean(logits, axis=-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - target
    return jnp.sum(weights * losses), jnp.sum(weights)


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns total / weight, and 0 with gradient 0 where nothing was counted."""
    counted = weight > 0
    return jnp.where(counted, total / jnp.where(counted, weight, 1.0), 0.0)
