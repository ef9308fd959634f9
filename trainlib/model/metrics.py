"""Metrics as pairs (total, count): sums stay exact over a padded last batch, microbatches and many
devices.

On a device the pairs are f32 sums, exact for counts below 2^24 in one batch; on the host they are
added in f64. B examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Metric(NamedTuple):
    """A weighted sum and the sum of its weights; the value is total / count."""

    total: Any
    count: Any


Metrics = Mapping[str, tuple[Any, Any]]  # name -> Metric or a plain pair (total, count)


def top_k_correct(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None, k: int = 1
) -> Metric:
    """Counts the examples whose label is among the k highest logits.

    The rank of the label is counted, not sorted: cheaper, and nothing is gathered where classes are
    sharded. Equal logits rank by class index, so a model that says the same for all classes scores
    chance; NaN ranks above everything, so a model that broke scores 0.

    Args:
      logits: [B, C].
      labels: [B] integers; examples of weight 0 may hold anything.
      weights: [B], 0 for padding; None: all 1.
      k: at least 1; k >= C counts every example with a number at its label.

    Returns:
      Metric(sum of weights of correct examples, sum of weights), f32.
    """
    weights = jnp.ones(labels.shape) if weights is None else weights.astype(jnp.float32)
    label_logits = jnp.take_along_axis(logits, jnp.where(weights > 0, labels, 0)[:, None], axis=-1)
    index = jnp.arange(logits.shape[-1])
    ahead = ~(logits <= label_logits) | ((logits == label_logits) & (index < labels[:, None]))
    correct = (jnp.sum(ahead, axis=-1) < k) & ~jnp.isnan(label_logits[:, 0])
    return Metric(jnp.sum(jnp.where(correct, weights, 0.0)), jnp.sum(weights))


def merge(first: Metrics | None, second: Metrics) -> dict[str, Metric]:
    """Adds two sets of metrics of the same names, on devices or on the host; None is the start."""
    if first is not None and first.keys() != second.keys():
        raise ValueError(f"Metrics differ: {sorted(first)} and {sorted(second)}.")
    merged = {}
    for name, (total, count) in second.items():
        before, counted = first[name] if first is not None else (0, 0)
        merged[name] = Metric(before + total, counted + count)
    return merged


def to_host(metrics: Metrics) -> dict[str, Metric]:
    """Fetches metrics in one transfer, as f64: to be merged over batches without rounding."""
    fetched = jax.device_get(dict(metrics))
    return {name: Metric(np.float64(t), np.float64(c)) for name, (t, c) in fetched.items()}


def compute(metrics: Metrics) -> dict[str, float]:
    """Returns name -> total / count on the host, in f64; NaN where nothing was counted."""
    return {
        name: float(total / count) if count else math.nan
        for name, (total, count) in to_host(metrics).items()
    }
