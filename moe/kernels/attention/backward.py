"""The backward kernel: gradients of queries, keys, values and bias in one pass over the logits.

Letters: B batch, N heads, Q queries, K keys, W lanes of a block, G heads in them.

    delta = sum(dout out) - dlogsumexp
    p = exp(s - logsumexp),  dp = dout v^T,  ds = p (dp - delta)
    dv = p^T dout,  dk = ds^T q,  dq = ds k,  dbias = sums of ds over diagonals

Five products of a logit where autodiff would keep or recompute arrays [.., Q, K]. The gradients of
all keys of a chunk stay in float32 on the chip while blocks of queries pass; so do the gradients of
the tiles near the diagonal, of which the sums over diagonals are taken once a column of heads. Far
from it a sum a side is all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe.kernels.attention.bias import FAR, diagonals
from moe.kernels.attention.blocks import (
    across,
    added,
    along,
    joined,
    kept,
    keys_of,
    of_head,
    over_tiles,
    product,
    runs,
    window_of,
)
from moe.kernels.attention.call import Call
from moe.kernels.attention.forward import logits_of, make_tiles
from moe.kernels.attention.plan import Plan

_SUBLANES = 8


def backward(plan: Plan, operands: dict[str, jax.Array], interpret: bool) -> list[jax.Array]:
    """Runs the kernel.

    Args:
      plan: of the call.
      operands: those of the forward kernel, and
        out, dout: [B, Q, N*H].
        logsumexp, dlogsumexp: float32 [B, N / G, G, Q].
      interpret: run it step by step on any backend.

    Returns:
      gradients of query, of key and of value, [B, .., N*H] in their types; with a bias also that of
      `near` and, in parts [N, 2 * 8, 128] to be added up, that of `far`.
    """
    query, key, value = (operands[name] for name in ("query", "key", "value"))
    call = Call(plan, operands, keys_outside=True)
    call.reads("query", "query_segments", "key_segments", "near")
    call.reads("key", "value", kind="key")
    call.reads("out", "dout", kind="query")
    call.reads("logsumexp", "dlogsumexp", kind="per_query")
    # Of several chunks of keys each leaves a part of the gradient of the queries.
    kind = query.dtype if plan.chunks == 1 else jnp.float32
    call.writes("dquery", (plan.chunks, *query.shape), kind, "query_part")
    call.writes("dkey", key.shape, key.dtype, "key")
    call.writes("dvalue", value.shape, value.dtype, "key")
    if plan.bias:
        call.writes("dnear", operands["near"].shape, jnp.float32, "near")
        call.writes("dfar", (plan.heads, FAR * 8, 128), jnp.float32, "far_gradient")
    call.holds("query_sums", (plan.rows, plan.lanes))
    call.holds("key_sums", (plan.chunk * plan.columns, plan.lanes))
    call.holds("value_sums", (plan.chunk * plan.columns, plan.lanes))
    call.holds_tiles()
    if plan.bias:
        call.holds_tiles("tile_sums")
    dquery, dkey, dvalue, *rest = call.run(_body, "attention_backward", interpret)
    dquery = dquery[0] if plan.chunks == 1 else jnp.sum(dquery, axis=0).astype(query.dtype)
    return [dquery, dkey, dvalue, *rest]


def _body(plan: Plan, ref, at) -> None:
    from jax.experimental import pallas as pl

    if plan.tiled:

        @pl.when(at.first_of_heads)
        def _():
            make_tiles(plan, ref)
            if plan.bias:
                ref["tile_sums"][...] = jnp.zeros_like(ref["tile_sums"])
                ref["dfar"][...] = jnp.zeros_like(ref["dfar"])

    @pl.when(at.i == 0)
    def _():
        ref["key_sums"][...] = jnp.zeros_like(ref["key_sums"])
        ref["value_sums"][...] = jnp.zeros_like(ref["value_sums"])

    ref["query_sums"][...] = jnp.zeros_like(ref["query_sums"])
    query, dout = ref["query"][...], ref["dout"][...]
    segments = across(ref["query_segments"][...]) if plan.segments else None
    heads = [_Head(plan, ref, g, query, dout) for g in range(plan.shared)]

    def add(j, run) -> None:
        keys = keys_of(plan, j)
        mask = None
        if segments is not None:
            mask = along(segments, plan.columns) == ref["key_segments"][:, keys]
        parts = [head.gradients(at, j, run, keys, mask) for head in heads]
        ref["query_sums"][...] += joined(plan, parts)

    at.over_blocks(runs(plan, at.i, at.chunk), add)
    ref["dquery"][...] = ref["query_sums"][...].astype(ref["dquery"].dtype)

    @pl.when(at.i == plan.q_blocks - 1)
    def _():
        ref["dkey"][...] = ref["key_sums"][...].astype(ref["dkey"].dtype)
        ref["dvalue"][...] = ref["value_sums"][...].astype(ref["dvalue"].dtype)

    if plan.bias:
        pl.when(at.last_of_heads)(lambda: _add_diagonals(plan, ref))


class _Head:
    """One head of a block of queries."""

    def __init__(self, plan: Plan, ref, g: int, query: jax.Array, dout: jax.Array):
        self.plan, self.ref, self.g = plan, ref, g
        self.query, self.dout = of_head(plan, g, query), of_head(plan, g, dout)
        self.logsumexp = across(ref["logsumexp"][g : g + 1, :])
        mixed = self.dout.astype(jnp.float32) * ref["out"][...].astype(jnp.float32)
        delta = jnp.sum(mixed, axis=1, keepdims=True)
        self.delta = delta - across(ref["dlogsumexp"][g : g + 1, :])

    def gradients(self, at, j, run, keys, mask) -> jax.Array:
        """Adds those of the keys and of the bias of a block; returns that of the queries, in which
        the lanes of other heads hold anything.
        """
        plan, ref = self.plan, self.ref
        key, value = ref["key"][keys, :], ref["value"][keys, :]
        number = j + at.chunk * plan.chunk - at.i + plan.aside if run.near else None
        logits = logits_of(plan, ref, self.g, self.query, key, number, mask)
        shift = self.logsumexp
        if plan.bias and not run.near:
            shift = shift - ref["far"][FAR * (at.n * plan.shared + self.g) + run.side]
        p = jnp.exp(logits - along(shift, plan.columns))
        dp = product(self.dout, value, (1, 1))
        left = p
        if plan.rate:
            stays = kept(plan, at.seed(self.g), at.i, j + at.chunk * plan.chunk)
            scale = 1 / (1 - plan.rate)
            left, dp = jnp.where(stays, p * scale, 0.0), jnp.where(stays, dp * scale, 0.0)
        ds = p * (dp - along(self.delta, plan.columns))
        ref["value_sums"][keys, :] += product(left.astype(value.dtype), self.dout, (0, 0))
        if plan.bias and number is not None:
            ref["tile_sums"][self.g * plan.tiles + number] += ds
        elif plan.bias:
            side = slice(8 * run.side, 8 * run.side + 8)
            ref["dfar"][self.g, side, :] += _folded(ds)
        ds = ds.astype(key.dtype)
        ref["key_sums"][keys, :] += product(ds, self.query, (0, 0))
        return product(ds, key, (1, 0))


def _folded(x: jax.Array) -> jax.Array:
    """[rows, columns] -> [8, 128] with the same sum."""
    rows = added(x[n : n + _SUBLANES] for n in range(0, x.shape[0], _SUBLANES))
    return added(rows[:, n : n + 128] for n in range(0, x.shape[1], 128))


def _add_diagonals(plan: Plan, ref) -> None:
    ref["dnear"][...] = jnp.zeros_like(ref["dnear"])

    def tile(g, t) -> None:
        gradient = ref["tile_sums"][g * plan.tiles + t]
        ref["dnear"][g, :, window_of(plan, t)] += diagonals(gradient, plan.rows)

    over_tiles(plan, tile)
