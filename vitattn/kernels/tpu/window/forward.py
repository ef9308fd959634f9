"""The forward kernel of windowed attention on packed maps.

Dimension letters: T tiles, H rows of a map, d query/key width a head, e value width a head, K
window, R = K // 2, S sublanes, L lanes.

A step of the grid is one tile of maps. Logits of all its pixels stay on the chip:

    each row of queries    logits = position terms and masks
    each row of keys       logits of the K rows of queries that see it += q . k
    each row of queries    softmax over the K x K logits of a pixel
    each row of values     results of the K rows of queries += p . v

Keys outside the map are zeros: no row of keys brings them, and their logits are what stood there
before.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.registers import LANES
from vitattn.kernels.tpu.window.rows import (
    Blocks,
    Chunks,
    Ref,
    Sizes,
    beside,
    clear_padding,
    each_lane_tile,
    everywhere,
    fill,
    position_terms,
    products,
    pull,
    repeat,
    spread,
    valid_lanes,
)

Array = jax.Array


def forward(
    q: Array, k: Array | None, v: Array, tables: Sequence[Array], sizes: Sizes, interpret: bool
) -> tuple[Array, Array]:
    """The kernel.

    Args:
      q: [T, H, d, S, L].
      k: [T, H, d, S, L], or None.
      v: [T, H, e, S, L].
      tables: float32 [K, d // 2, S, L] and [K, d - d // 2, S, L], the same number in every lane; or
        none.
      sizes: of the call.
      interpret: run it step by step on any backend.

    Returns:
      [T, H, e, S, L] in the type of v, and float32 [T, H, S, L]: the logarithm of the sum of the
      exponentials of a query's logits; zeros in the padding.
    """
    from jax.experimental import pallas as pl

    blocks, window = Blocks(sizes), sizes.window
    depth, values = Chunks.of(sizes.depth).total, Chunks.of(sizes.values).total
    keys = () if k is None else (k,)
    return pl.pallas_call(
        functools.partial(_kernel, sizes),
        grid=(sizes.packing.tiles,),
        in_specs=[
            *map(blocks.whole, tables),
            *[blocks.tile(x) for x in (q, *keys, v)],
        ],
        out_specs=[blocks.tile(v), blocks.statistic()],
        out_shape=[jax.ShapeDtypeStruct(v.shape, v.dtype), blocks.statistics()],
        scratch_shapes=[
            blocks.scratch(sizes.rows, depth),
            blocks.scratch(window, depth),
            blocks.scratch(window, values),
            blocks.scratch(sizes.rows, window, window),
            blocks.scratch(sizes.rows, values),
            blocks.scratch(sizes.packing.height),
        ],
        compiler_params=blocks.parameters(in_order=False),
        interpret=interpret,
        name="window_forward",
    )(*tables, q, *keys, v)


def _kernel(sizes: Sizes, *refs: Ref) -> None:
    split = 2 * sizes.position
    tables, (q, *rest) = refs[:split], refs[split:]
    k = rest.pop(0) if sizes.content else None
    v, out, logsumexp, queries, keys, values, logits, sums, inverse = rest
    height, reach = sizes.packing.height, sizes.reach
    valid = valid_lanes(sizes)

    def prepare(y: Any) -> None:
        query = q[0, y].astype(jnp.float32) * sizes.scale
        fill(queries, y + reach, query)
        row, col = position_terms(query, tables, y, sizes)
        for a, b in itertools.product(range(sizes.window), repeat=2):
            logits[y + reach, a, b] = row[a] + col[b]
        fill(sums, y + reach, None)

    def score(y: Any) -> None:
        assert k is not None
        shifts = spread(k.at[0, y], keys, sizes)
        work = beside(shifts, sizes.depth, sizes.depth, sizes)
        if sizes.packing.lanes > LANES:
            everywhere(shifts, sizes.depth)
        each_lane_tile(sizes, lambda at: products(queries, keys, seen(y), y, at, sizes, work=work))

    def seen(y: Any) -> Callable[[int], Ref]:
        return lambda a: logits.at[y + 2 * reach - a, a]

    def softmax(y: Any) -> None:
        top = jnp.max(logits[y + reach], axis=(0, 1))
        p = jnp.exp(logits[y + reach] - top)
        logits[y + reach] = p
        weight = jnp.sum(jnp.sum(p, axis=0), axis=0)
        inverse[y] = 1 / weight
        logsumexp[0, y] = jnp.where(valid, top + jnp.log(weight), 0)

    def gather(y: Any) -> None:
        shifts = spread(v.at[0, y], values, sizes)
        work = beside(shifts, sizes.values, sizes.values, sizes)
        if sizes.packing.lanes > LANES:
            everywhere(shifts, sizes.values)
        each_lane_tile(sizes, lambda at: pull(seen(y), values, sums, y, at, sizes, work))

    def write(y: Any) -> None:
        result = sums[y + reach, : sizes.values] * inverse[y]
        # Beside a pixel that is not a number, padding would be none either.
        out[0, y] = jnp.where(valid, result, 0).astype(out.dtype)

    clear_padding(keys, sizes.depth)
    repeat(height, prepare)
    if k is not None:
        repeat(height, score)
    repeat(height, softmax)
    repeat(height, gather)
    repeat(height, write)
