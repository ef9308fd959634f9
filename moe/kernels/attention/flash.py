"""Attention of T5 by the kernels of this folder: values and gradients.

Letters: B batch, N heads, Q queries, K keys, H width of one head, M distance from which on a bias
no longer changes.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from moe.kernels.attention.backward import backward
from moe.kernels.attention.bias import near_and_far, sum_of_rows, tiles_aside
from moe.kernels.attention.blocks import GONE, LANES, Plan, segment_ranges
from moe.kernels.attention.forward import forward
from trainlib.model.remat import SCORES, keep

_TYPES = (jnp.bfloat16, jnp.float32)
_BLOCKS = (512, 256, 128)  # rows and columns of a block, best first
_WASTE = 1.15  # rows with padding over rows in whole tiles of 128, at the most, for a larger block


def fits(
    query: jax.Array,
    key: jax.Array,
    bias: jax.Array | None = None,
    *,
    causal: bool = False,
) -> bool:
    """Whether `flash_attention` computes these: sizes known while tracing, and none of them zero.

    Args:
      query: [B, Q, N, H].
      key: [B, K, N, H].
      bias: see `flash_attention`.
      causal: see there.
    """
    sizes = (*query.shape, *key.shape)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return False
    return query.dtype == key.dtype and query.dtype in _TYPES


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
    batch, queries, heads, width = query.shape
    keys = key.shape[1]
    rate = dropout_rate if dropout_seeds is not None else 0.0
    masked = query_segments is not None
    plan = _plan(query, key, bias, masked, causal, rate, block)
    masked = plan.segments
    flat = [
        _flat(x, n, plan) for x, n in ((query, plan.queries), (key, plan.keys), (value, plan.keys))
    ]
    operands: dict[str, jax.Array] = {}
    if masked:
        if query_segments is None or key_segments is None:
            query_segments = jnp.ones((batch, queries), jnp.int32)
            key_segments = jnp.ones((batch, keys), jnp.int32)
        seen = _padded(jnp.maximum(query_segments, 0), plan.queries)
        there = _padded(key_segments, plan.keys)
        operands["ranges"] = segment_ranges(plan, seen, there)
        operands["query_segments"] = seen[:, None]
        operands["key_segments"] = jnp.where(there > 0, there, -1)[:, None]
    if rate and dropout_seeds is not None:
        seeds = jnp.pad(dropout_seeds, ((0, 0), (0, plan.heads - heads)))
        operands["seeds"] = lax.bitcast_convert_type(seeds, jnp.int32).reshape(-1)
    near = far = None
    if plan.tiled:
        if bias is not None:
            bias = jnp.pad(_within(bias, queries, keys), ((0, plan.heads - heads), (0, 0)))
        near, far = near_and_far(
            bias, plan.heads, plan.rows, plan.aside, causal=causal, masked=GONE
        )
        if bias is None:
            operands["near"], near, far = near, None, None
    out, logsumexp = _flash(*flat, near, far, operands, plan, interpret)
    out = out.reshape(batch, plan.queries, plan.heads, plan.width)
    logsumexp = logsumexp.reshape(batch, plan.heads, plan.queries)
    return out[:, :queries, :heads, :width], logsumexp[:, :heads, :queries]


def _within(bias: jax.Array, queries: int, keys: int) -> jax.Array:
    """A bias without the offsets that do not occur."""
    distance = bias.shape[1] // 2
    less = max(distance - max(queries, keys), 0)
    return bias[:, less : bias.shape[1] - less]


def _plan(query, key, bias, masked, causal, rate, block) -> Plan:
    _, queries, heads, width = query.shape
    keys = key.shape[1]
    width = _width(width)
    shared = max(LANES // width, 1)
    tiled = bias is not None or causal
    rows, columns = (block or _block(size) for size in (queries, keys))
    if tiled:
        rows = columns = min(rows, columns)
    plan = Plan(
        heads=_up(heads, shared),
        width=width,
        queries=_up(queries, rows),
        keys=_up(keys, columns),
        rows=rows,
        columns=columns,
        chunk=_up(keys, columns) // columns,
        tiled=tiled,
        bias=bias is not None,
        causal=causal,
        # Padded keys are to be masked, but where causality does.
        segments=masked or (keys % columns > 0 and not (causal and queries <= keys)),
        rate=rate,
    )
    if bias is None:
        return plan
    distance = min(bias.shape[1] // 2, max(queries, keys))
    return dataclasses.replace(plan, aside=tiles_aside(distance, rows))


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _width(width: int) -> int:
    """Lanes of a head: so many that heads divide 128 lanes, or that those divide a head."""
    return _up(width, LANES) if width > LANES else 2 ** math.ceil(math.log2(width))


def _block(size: int) -> int:
    """The largest that pads little."""
    least = _up(size, LANES)
    return next(block for block in _BLOCKS if _up(size, block) <= _WASTE * least)


def _padded(x: jax.Array, length: int) -> jax.Array:
    """[B, L, ..] -> [B, length, ..]."""
    rest = ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *rest))


def _flat(x: jax.Array, length: int, plan: Plan) -> jax.Array:
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
    return dquery, dkey, dvalue, sum_of_rows(near), far, None


_flash.defvjp(_forward, _backward)
