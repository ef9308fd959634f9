"""Dropout of attention probabilities by a counter-based generator.

Letters: B batch, N heads, Q queries, K keys.

Whether a probability is kept is a function of the seed of its sequence and head and of the
positions of query and key, in integers of 32 bits that wrap. A kernel computes it where it needs
it, forward and backward, and a reference gets the same mask without the kernel:

    kept(q, k) = mix(row(q) + column(k)) >= rate 2^32 - 2^31,   as signed integers
    row(q) = mix(seed xor mix(q)),   column(k) = mix(k + 2^31)

`mix` has two rounds of shift, exclusive or and multiplication, with the constants of low bias that
Ellis found by search (nullprogram.com/blog/2018/07/31). Rows and columns are mixed once each, so
that a pair costs an addition, two rounds and a comparison.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def _signed(number: int) -> int:
    """The signed integer of 32 bits with the bits of an unsigned one."""
    return number - 2**32 if number >= 2**31 else number


def _mix(x: jax.Array) -> jax.Array:
    """int32 -> int32, one to one. Its upper bits are the better ones: a last shift is left out."""
    x = x ^ lax.shift_right_logical(x, jnp.full_like(x, 16))
    x = x * jnp.int32(_signed(0x7FEB352D))
    x = x ^ lax.shift_right_logical(x, jnp.full_like(x, 15))
    return x * jnp.int32(_signed(0x846CA68B))


def rows(seed: jax.Array, queries: jax.Array) -> jax.Array:
    """int32 of each query, from its position and the int32 seed of its sequence and head."""
    return _mix(seed ^ _mix(queries))


def columns(keys: jax.Array) -> jax.Array:
    """int32 of each key, from its position."""
    return _mix(keys + jnp.int32(-(2**31)))


def kept(row: jax.Array, column: jax.Array, rate: float) -> jax.Array:
    """Whether the probability of a pair stays, bool; `row` and `column` int32 that broadcast."""
    least = min(round(rate * 2**32), 2**32 - 1) - 2**31
    return _mix(row + column) >= jnp.int32(least)


def keep_mask(seeds: jax.Array, queries: int, keys: int, rate: float) -> jax.Array:
    """The mask of a whole array of probabilities, for forms that have one.

    Args:
      seeds: uint32 [B, N], for example `jax.random.bits(key, (B, N))`.
      queries: Q.
      keys: K.
      rate: share of probabilities that are zeroed.

    Returns:
      bool [B, N, Q, K].
    """
    seed = lax.bitcast_convert_type(seeds, jnp.int32)[:, :, None, None]
    row = rows(seed, jnp.arange(queries, dtype=jnp.int32)[:, None])
    return kept(row, columns(jnp.arange(keys, dtype=jnp.int32)), rate)
