"""Attention of T5 by the kernels of this folder: values and gradients.

Letters: B batch, N heads, Q queries, K keys, H width of one head, M distance from which on a bias
no longer changes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moe.kernels.attention.backward import backward
from moe.kernels.attention.bias import near_and_far
from moe.kernels.attention.blocks import GONE, segment_ranges
from moe.kernels.attention.forward import forward
from moe.kernels.attention.plan import Plan, plan_of
from trainlib.model.remat import SCORES, keep


def flash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias: jax.Array | None = None,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_seeds: jax.Array | None = None,
    interpret: bool = False,
    block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention as `moe.layers.attention.attend`, without an array of all queries by all keys.

    A query that sees no key, as padding does, gets zeros and no gradient, and its logsumexp is
    -1e9; the plain form has the mean of all values there.

    Args:
      query: [B, Q, N, H] of bfloat16 or float32.
      key: [B, K, N, H] in the same type.
      value: [B, K, N, H] in the same type.
      bias: float32 [N, 2 M + 1], added to the logits of the offsets (key position minus query
        position) -M to M; farther ones get that of the ends. See `relative_vector`.
      query_segments: int32 [B, Q], 0 is padding: a query sees the keys of its own segment.
      key_segments: int32 [B, K].
      causal: a query sees no key after it, by positions in the arrays.
      dropout_rate: share of the probabilities that are zeroed.
      dropout_seeds: uint32 [B, N], of each sequence and head, for example `jax.random.bits(key, (B,
        N))`; None switches dropout off. `dropout.keep_mask` says what is kept.
      interpret: run the kernels step by step on any backend, for tests.
      block: rows and columns of a block, a multiple of 128; None chooses.

    Returns:
      ([B, Q, N, H] in the type of `value`, logsumexp of the logits float32 [B, N, Q]). Both have
      gradients, of query, key, value and bias.
    """
    if (query_segments is None) != (key_segments is None):
        raise ValueError("Segments of queries and of keys: give both, or neither.")
    rate = dropout_rate if dropout_seeds is not None else 0.0
    masked = query_segments is not None
    plan = plan_of(query, key, bias, causal=causal, segments=masked, rate=rate, block=block)
    if plan is None:
        raise ValueError("No block of this attention fits into a core's memory: ask `fits` first.")
    (batch, queries, heads, width), keys = query.shape, key.shape[1]
    operands = _segments(plan, query_segments, key_segments, batch, queries, keys)
    if rate and dropout_seeds is not None:
        seeds = jnp.pad(dropout_seeds, ((0, 0), (0, plan.heads - heads)))
        operands["seeds"] = lax.bitcast_convert_type(seeds, jnp.int32).reshape(-1)
    near = far = None
    if bias is not None:
        near, far = near_and_far(plan, _within(bias, heads, plan.heads, max(queries, keys)), GONE)
    elif causal:
        operands["near"], _ = near_and_far(plan, None, GONE)
    flat = (_flat(plan, x, n) for x, n in zip((query, key, value), plan.lengths, strict=True))
    results: tuple[jax.Array, jax.Array] = _flash(*flat, near, far, operands, plan, interpret)
    out, logsumexp = results
    out = out.reshape(batch, plan.queries, plan.heads, plan.width)
    logsumexp = logsumexp.reshape(batch, plan.heads, plan.queries)
    return out[:, :queries, :heads, :width], logsumexp[:, :heads, :queries]


def _segments(
    plan: Plan,
    of_queries: jax.Array | None,
    of_keys: jax.Array | None,
    batch: int,
    queries: int,
    keys: int,
) -> dict[str, jax.Array]:
    """What the kernels read of segments; where only padding is to be masked, all are one."""
    if not plan.segments:
        return {}
    if of_queries is None or of_keys is None:
        of_queries, of_keys = (jnp.ones((batch, n), jnp.int32) for n in (queries, keys))
    of_queries = _padded(jnp.maximum(of_queries, 0), plan.queries)
    of_keys = _padded(of_keys, plan.keys)
    return {
        "ranges": segment_ranges(plan, of_queries, of_keys),
        "query_segments": of_queries[:, None],
        "key_segments": jnp.where(of_keys > 0, of_keys, -1)[:, None],
    }


def _within(bias: jax.Array, heads: int, padded: int, distance: int) -> jax.Array:
    """A bias of all heads, without the offsets that do not occur."""
    less = max(bias.shape[1] // 2 - distance, 0)
    within = bias[:, less : bias.shape[1] - less].astype(jnp.float32)
    return jnp.pad(within, ((0, padded - heads), (0, 0)))


def _padded(x: jax.Array, length: int) -> jax.Array:
    """[B, L, ..] -> [B, length, ..]."""
    rest = ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *rest))


def _flat(plan: Plan, x: jax.Array, length: int) -> jax.Array:
    """[B, L, N, H] -> [B, length, N*H], each padded as the kernels need it."""
    heads, width = plan.heads - x.shape[2], plan.width - x.shape[3]
    if heads or width:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, heads), (0, width)))
    return _padded(x.reshape(*x.shape[:2], -1), length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _flash(
    query, key, value, near, far, operands, plan: Plan, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """([B, Q, N*H], logsumexp float32 [B, N / G, G, Q]); for the operands see `Call`."""
    return _forward(query, key, value, near, far, operands, plan, interpret)[0]


def _forward(query, key, value, near, far, operands, plan, interpret):
    named = operands | {"query": query, "key": key, "value": value}
    if near is not None:
        named |= {"near": near, "far": far}
    out, logsumexp = forward(plan, named, interpret)
    out, logsumexp = keep(SCORES, out), keep(SCORES, logsumexp)
    return (out, logsumexp), (named, out, logsumexp)


def _backward(plan, interpret, residuals, cotangents):
    named, out, logsumexp = residuals
    dout, dlogsumexp = cotangents
    more = {"out": out, "dout": dout, "logsumexp": logsumexp, "dlogsumexp": dlogsumexp}
    dquery, dkey, dvalue, *rest = backward(plan, named | more, interpret)
    if not rest:
        return dquery, dkey, dvalue, None, None, None
    near, far = rest
    far = jnp.sum(far.reshape(plan.heads, 2, -1), axis=2).reshape(-1)
    return dquery, dkey, dvalue, near, far, None


_flash.defvjp(_forward, _backward)
