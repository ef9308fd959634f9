"""The backward kernel for large maps: gradients of q, k, v and both tables in one pass.

Letters: M maps of one head, H W map, d query/key width a head, e value width a head, T queries of a
tile, L lanes.

    p = exp(augmented keys x augmented queries), -logsumexp among the terms
    ds = p ([v, 1, 1] x [dout, -delta in two parts]),  delta = sum(dout out)
    dv = dout p^T,  dk = q ds^T,  d(augmented queries) = augmented keys^T ds

The last one holds the gradients of row and column terms too, so that those of the tables are one
small product a tile of queries. Gradients of keys and values stay in float32 on the chip while
tiles of queries pass, those of the tables for all maps.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.registers import LANES, SUBLANES, filled
from vitattn.kernels.tpu.relative.blocked_call import call
from vitattn.kernels.tpu.relative.blocked_terms import (
    at_rows,
    at_tile,
    block_of,
    for_block,
    keep_keys,
    keep_queries,
    stacked,
    within,
)
from vitattn.kernels.tpu.relative.blocks import EXTRA, Blocks
from vitattn.kernels.tpu.relative.shape import ABSENT
from vitattn.kernels.tpu.shift import put_rows, scatter_rows
from vitattn.kernels.tpu.stages import parts_of, product

Array = jax.Array


def backward(b: Blocks, scale: float, operands: dict[str, Array], interpret: bool):
    """Runs the kernel.

    Args:
      b: sizes.
      scale: of the logits.
      operands: those of the forward kernel, out and dout [M, e, HW], and its logsumexp.
      interpret: run it step by step on any backend.

    Returns:
      gradients of q, k and v in their types, and with tables float32 [sum of offsets, content],
      see `split_tables`.
    """
    dtype = operands["q"].dtype
    out = {
        "d" + name: jax.ShapeDtypeStruct(operands[name].shape, operands[name].dtype)
        for name in ("q", "k", "v")
    }
    held = {
        "keys": ((b.blocks, b.key_lanes, filled(b.contracted, LANES)), dtype),
        "keys_transposed": ((b.blocks, b.gradients, b.key_lanes), dtype),
        "values": ((b.blocks, b.key_lanes, b.sums), dtype),
        "queries": ((b.contracted, b.queries), dtype),
        "row_terms": ((b.all_row_terms, b.queries), jnp.float32),
        "drow_terms": ((b.all_row_terms, b.queries), jnp.float32),
        "dqueries": ((b.gradients - b.row_terms, b.queries), jnp.float32),
        "dkeys": ((b.blocks, b.content, b.key_lanes), jnp.float32),
        "dvalues": ((b.blocks, b.sums, b.key_lanes), jnp.float32),
    }
    if b.tables:
        out["dtable"] = jax.ShapeDtypeStruct(operands["table"].shape, jnp.float32)
    body = functools.partial(_body, b, scale)
    return call(b, body, "relative_backward", operands, out, held, interpret)


def _body(b: Blocks, scale: float, ref) -> None:
    from jax.experimental import pallas as pl

    if b.tables:

        @pl.when(pl.program_id(0) == 0)
        def _():
            ref["dtable"][...] = jnp.zeros_like(ref["dtable"])

    keep_keys(b, ref["ones"][...], ref["k"][...], ref["keys"], ref["keys_transposed"])
    _keep_values(b, ref)
    ref["dkeys"][...] = jnp.zeros_like(ref["dkeys"])
    ref["dvalues"][...] = jnp.zeros_like(ref["dvalues"])
    jax.lax.fori_loop(0, b.tiles, functools.partial(_tile, b, scale, ref), 0)
    for name, sums, rows in (("dk", "dkeys", b.depth), ("dv", "dvalues", b.values)):
        # Blocks are as many lanes apart as they have keys, which need not be whole registers.
        parts = [ref[sums][j][:rows, : b.rows * b.width] for j in range(b.blocks)]
        parts.append(jnp.zeros((rows, b.lanes - b.blocks * b.rows * b.width), jnp.float32))
        ref[name][...] = jnp.concatenate([p for p in parts if p.shape[1]], axis=1).astype(
            ref[name].dtype
        )


def _keep_values(b: Blocks, ref) -> None:
    """[v, 1, 1]^T of each block."""
    for j in range(b.blocks):
        value = stacked([block_of(b, ref["v"][...], j)], LANES, jnp.float32)
        row = jax.lax.broadcasted_iota(jnp.int32, value.shape, 0)
        value = jnp.where((row == b.values) | (row == b.values + 1), 1.0, value)
        ref["values"][j] = value.T[:, : b.sums].astype(ref["values"].dtype)


def _tile(b: Blocks, scale: float, ref, i, _):
    """Adds what a tile of queries gives."""
    dtype = ref["q"].dtype
    at, first = at_tile(b, i), i * b.queries
    q = stacked([within(ref["q"][:, at] * scale, first, b.pixels)], b.content, dtype)
    starts = ref["starts"][:, at]
    table = ref["table"][...] if b.tables else None
    keep_queries(b, q, table, starts, ref["queries"], ref["row_terms"])
    logsumexp = within(ref["logsumexp"][:, at], first, b.pixels)
    extra = [-part for part in parts_of(logsumexp, dtype, 3)]
    extra = put_rows(jnp.zeros((EXTRA, b.queries), jnp.float32), dict(enumerate([*extra, ABSENT])))
    dout = within(ref["dout"][:, at], first, b.pixels)
    delta = jnp.sum(dout * within(ref["out"][:, at], first, b.pixels), axis=0, keepdims=True)
    dout = stacked([dout], b.sums, jnp.float32)
    below = {b.values + n: -part for n, part in enumerate(parts_of(delta, dtype, 2))}
    dout = put_rows(dout, below).astype(dtype)
    ref["dqueries"][...] = jnp.zeros_like(ref["dqueries"])

    def block(j, _):
        queries = for_block(b, j, q, extra, ref["queries"], ref["row_terms"])
        p = jnp.exp(product(ref["keys"][j, : b.keys, : b.contracted], queries))
        ds = (p * product(ref["values"][j, : b.keys, :], dout)).astype(dtype)
        dqueries = product(ref["keys_transposed"][j][:, : b.keys], ds)
        ref["drow_terms"][at_rows(b, j), :] = dqueries[: b.row_terms]
        ref["dqueries"][...] += dqueries[b.row_terms :]
        ref["dvalues"][j, :, : b.keys] += product(dout, p.astype(dtype), (1, 1))
        ref["dkeys"][j, :, : b.keys] += product(q, ds, (1, 1))
        return 0

    jax.lax.fori_loop(0, b.blocks, block, 0)
    dq = ref["dqueries"][: b.content, :]
    if b.tables:
        columns = ref["dqueries"][b.content : b.content + b.column_terms, :]
        dterms = [
            scatter_rows(ref["drow_terms"][...], starts[:SUBLANES], b.height, b.offsets[0]),
            scatter_rows(columns, starts[SUBLANES:], b.width, b.offsets[1]),
        ]
        dterms = jnp.concatenate(dterms, axis=0).astype(dtype)
        dq += product(ref["table_transposed"][...], dterms)
        ref["dtable"][...] += product(dterms, q, (1, 1))
    ref["dq"][:, at] = (dq[: b.depth] * scale).astype(ref["dq"].dtype)
    return 0
