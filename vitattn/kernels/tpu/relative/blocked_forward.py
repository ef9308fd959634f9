"""The forward kernel for large maps: a softmax that runs over blocks of whole rows of keys.

Letters: M maps of one head, H W map, d query/key width a head, e value width a head, T queries of a
tile, L lanes.

    per block    s = augmented keys x augmented queries;  m' = max(m, max s);  p = exp(s - m')
                 sums' = sums exp(m - m') + [v, 1] p
    in the end   out = sums / their last row,  logsumexp = m + log of it
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.registers import LANES, filled
from vitattn.kernels.tpu.relative.blocked_call import call
from vitattn.kernels.tpu.relative.blocked_terms import (
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
from vitattn.kernels.tpu.shift import put_rows
from vitattn.kernels.tpu.stages import product

Array = jax.Array

# Keys whose logits are exponentials next: the matrix unit makes those of as many more meanwhile.
_CHUNK = 128


def forward(b: Blocks, scale: float, operands: dict[str, Array], interpret: bool):
    """Runs the kernel.

    Args:
      b: sizes.
      scale: of the logits.
      operands: see `call`: q, k, v and the constants.
      interpret: run it step by step on any backend.

    Returns:
      ([M, e, HW] in the type of v, logsumexp float32 [M, 1, HW]).
    """
    v = operands["v"]
    dtype = operands["q"].dtype
    out = {
        "out": jax.ShapeDtypeStruct(v.shape, v.dtype),
        "logsumexp": jax.ShapeDtypeStruct((v.shape[0], 1, b.pixels), jnp.float32),
    }
    held = {
        "keys": ((b.blocks, b.key_lanes, filled(b.contracted, LANES)), dtype),
        "values": ((b.blocks, b.sums, b.key_lanes), dtype),
        "queries": ((b.contracted, b.queries), dtype),
        "row_terms": ((b.all_row_terms, b.queries), jnp.float32),
    }
    body = functools.partial(_body, b, scale)
    return call(b, body, "relative_forward", operands, out, held, interpret)


def _body(b: Blocks, scale: float, ref) -> None:
    dtype = ref["q"].dtype
    keep_keys(b, ref["ones"][...], ref["k"][...], ref["keys"])
    for j in range(b.blocks):
        value = stacked([block_of(b, ref["v"][...], j)], b.sums, jnp.float32)
        row = jax.lax.broadcasted_iota(jnp.int32, value.shape, 0)
        ref["values"][j] = jnp.where(row == b.values, 1.0, value).astype(dtype)
    extra = put_rows(jnp.zeros((EXTRA, b.queries), jnp.float32), {3: ABSENT})
    chunks = [slice(n, min(n + _CHUNK, b.keys)) for n in range(0, b.keys, _CHUNK)]

    def logits_of(j, chunk: slice, queries: Array) -> Array:
        return product(ref["keys"][j, chunk, : b.contracted], queries)

    def tile(i, _):
        at = at_tile(b, i)
        q = stacked([within(ref["q"][:, at] * scale, i * b.queries, b.pixels)], b.content, dtype)
        table = ref["table"][...] if b.tables else None
        keep_queries(b, q, table, ref["starts"][:, at], ref["queries"], ref["row_terms"])

        def block(j, carry):
            queries = for_block(b, j, q, extra, ref["queries"], ref["row_terms"])
            ahead = logits_of(j, chunks[0], queries)
            for chunk, following in itertools.zip_longest(chunks, chunks[1:]):
                logits = ahead
                if following is not None:
                    ahead = logits_of(j, following, queries)
                carry = _add(logits, ref["values"][j][:, chunk], *carry)
            return carry

        start = jnp.full((1, b.queries), 2 * ABSENT), jnp.zeros((b.sums, b.queries), jnp.float32)
        largest, sums = jax.lax.fori_loop(0, b.blocks, block, start)
        total = sums[b.values : b.values + 1]
        ref["out"][:, at] = (sums[: b.values] / total).astype(ref["out"].dtype)
        ref["logsumexp"][:, at] = largest + jnp.log(total)
        return 0

    jax.lax.fori_loop(0, b.tiles, tile, 0)


def _add(logits: Array, values: Array, largest: Array, sums: Array) -> tuple[Array, Array]:
    """Goes on with the softmax: logits [keys, T], values with ones [.., keys]."""
    most = jnp.maximum(largest, jnp.max(logits, axis=0, keepdims=True))
    p = jnp.exp(logits - most).astype(values.dtype)
    return most, sums * jnp.exp(largest - most) + product(values, p)
