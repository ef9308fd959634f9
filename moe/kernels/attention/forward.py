"""The forward kernel: a softmax that runs over blocks of keys.

Letters: B batch, N heads, Q queries, K keys, W lanes of a block, G heads in them.

    per block    s = q k^T + bias;  m' = max(m, max_k s);  p = exp(s - m')
                 l' = l exp(m - m') + sum_k p;  o' = o exp(m - m') + p v
    in the end   out = o / l,  logsumexp = m + log l

The largest logit so far starts at `MASKED`, far above masked logits: a query that sees no key gets
zeros, and `MASKED` for its logsumexp. The sum l is kept by lanes and added up across them once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe.kernels.attention.bias import FAR, toeplitz
from moe.kernels.attention.blocks import (
    GONE,
    MASKED,
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
from moe.kernels.attention.plan import LANES, Plan


def forward(
    plan: Plan, operands: dict[str, jax.Array], interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """Runs the kernel.

    Args:
      plan: of the call.
      operands: see `Call`.
      interpret: run it step by step on any backend.

    Returns:
      ([B, Q, N*H] in the type of `value`, logsumexp float32 [B, N / G, G, Q]).
    """
    call = Call(plan, operands, keys_outside=False)
    call.reads("query", "query_segments", "key_segments", "near")
    call.reads("key", "value", kind="key")
    call.writes("out", operands["query"].shape, operands["value"].dtype, "query")
    call.writes("logsumexp", call.per_query, jnp.float32, "per_query")
    call.holds("sums", (plan.rows, plan.lanes))
    call.holds("largest", (plan.shared, plan.rows, LANES))
    call.holds("total", (plan.shared, plan.rows, LANES))
    call.holds_tiles()
    out, logsumexp = call.run(_body, "attention_forward", interpret)
    return out, logsumexp


def make_tiles(plan: Plan, ref) -> None:
    """Fills the tiles of the heads of a block."""

    def tile(g, t) -> None:
        window = ref["near"][g, :, window_of(plan, t)]
        ref["tiles"][g * plan.tiles + t] = toeplitz(window, plan.rows)

    over_tiles(plan, tile)


def logits_of(plan: Plan, ref, g: int, query, key, tile, mask) -> jax.Array:
    """float32 [rows, columns] of a head; `tile` is the number of its tile, or None far from the
    diagonal, `mask` is bool or None.
    """
    logits = product(query, key, (1, 1))
    if tile is not None:
        logits = logits + ref["tiles"][g * plan.tiles + tile]
    return logits if mask is None else jnp.where(mask, logits, GONE)


def _body(plan: Plan, ref, at) -> None:
    from jax.experimental import pallas as pl

    if plan.tiled:
        pl.when(at.first_of_heads)(lambda: make_tiles(plan, ref))

    @pl.when(at.chunk == 0)
    def _():
        ref["sums"][...] = jnp.zeros_like(ref["sums"])
        ref["total"][...] = jnp.zeros_like(ref["total"])
        ref["largest"][...] = jnp.full_like(ref["largest"], MASKED)

    query = ref["query"][...]
    segments = across(ref["query_segments"][...]) if plan.segments else None

    def add(j, run) -> None:
        keys = keys_of(plan, j)
        key, value = ref["key"][keys, :], ref["value"][keys, :]
        mask = None
        if segments is not None:
            mask = along(segments, plan.columns) == ref["key_segments"][:, keys]
        scales, parts = [], []
        for g in range(plan.shared):
            number = j + at.chunk * plan.chunk - at.i + plan.aside if run.near else None
            logits = logits_of(plan, ref, g, of_head(plan, g, query), key, number, mask)
            far = 0.0
            if plan.bias and not run.near:
                far = ref["far"][FAR * (at.n * plan.shared + g) + run.side]
            before = ref["largest"][g]
            largest = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True) + far)
            scale = jnp.exp(before - largest)
            p = jnp.exp(logits - along(largest - far, plan.columns))
            by_lane = added(p[:, n : n + LANES] for n in range(0, plan.columns, LANES))
            ref["largest"][g] = largest
            ref["total"][g] = ref["total"][g] * scale + by_lane
            if plan.rate:
                stays = kept(plan, at.seed(g), at.i, j + at.chunk * plan.chunk)
                p = jnp.where(stays, p, 0.0)
            scales.append(along(scale, plan.lanes))
            parts.append(product(p.astype(value.dtype), value, (1, 0)))
        ref["sums"][...] = ref["sums"][...] * joined(plan, scales) + joined(plan, parts)

    at.over_blocks(runs(plan, at.i, at.chunk), add)

    @pl.when(at.chunk == plan.chunks - 1)
    def _():
        shares = []
        for g in range(plan.shared):
            total = jnp.sum(ref["total"][g], axis=1, keepdims=True)
            total = jnp.broadcast_to(jnp.where(total == 0, 1.0, total), (plan.rows, LANES))
            rows = (ref["largest"][g] + jnp.log(total)).T
            ref["logsumexp"][g : g + 1, :] = rows[:1]
            shares.append(along(1 / (total * (1 - plan.rate)), plan.lanes))
        out = ref["sums"][...] * joined(plan, shares)
        ref["out"][...] = out.astype(ref["out"].dtype)
