"""Dropout, and the random keys of a layer's parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout, one draw for all positions of a sequence as in T5.

    Args:
      x: [B, ..., L, D].
      rate: share of (sequence, feature) pairs that are zeroed.
      key: None (evaluation) leaves x as it is.

    Returns:
      The shape and type of x.
    """
    if key is None or not rate:
        return x
    shape = (*x.shape[:-2], 1, x.shape[-1])
    alive = jax.random.bernoulli(key, 1.0 - rate, shape)  # [B, ..., 1, D]
    return jnp.where(alive, x / (1.0 - rate), 0).astype(x.dtype)


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Keys for `count` parts of a layer; all None in evaluation, where `key` is None."""
    return [None] * count if key is None else list(jax.random.split(key, count))
