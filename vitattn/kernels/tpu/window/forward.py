"""The forward kernel of windowed attention on packed maps.

Dimension letters: T tiles, H rows of a map, d query/key width a head, e value width a head, K
window, R = K // 2, S sublanes, L lanes.

A step of the grid is a band of one tile of maps (`bands`). Logits of all its pixels stay on the
chip:

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
from vitattn.kernels.tpu.window.bands import Blocks, Step, filled_up
from vitattn.kernels.tpu.window.rows import (
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

    blocks, window, height = Blocks(sizes), sizes.window, q.shape[1]
    depth, values = Chunks.of(sizes.depth).total, Chunks.of(sizes.values).total
    q, *keys = (filled_up(x, sizes) for x in (q, k, v) if x is not None)
    results = [jax.ShapeDtypeStruct(keys[-1].shape, v.dtype), blocks.statistics()]
    rows = sizes.band + 2 * _first(sizes)
    out, logsumexp = pl.pallas_call(
        functools.partial(_kernel, sizes),
        grid=blocks.grid,
        in_specs=[*map(blocks.whole, tables), blocks.band(q), *map(blocks.wide, keys)],
        out_specs=[*map(blocks.band, results)],
        out_shape=results,
        scratch_shapes=[
            blocks.scratch(rows, depth),
            blocks.scratch(window, depth),
            blocks.scratch(window, values),
            blocks.scratch(rows, window, window),
            blocks.scratch(rows, values),
            blocks.scratch(sizes.band),
        ],
        compiler_params=blocks.parameters(in_order=False),
        interpret=interpret,
        name="window_forward",
    )(*tables, q, *keys)
    return out[:, :height], logsumexp[:, :height]


def _first(sizes: Sizes) -> int:
    """The number of the first row of queries. Rows of keys begin R before them where there are
    several bands, and each is seen by R rows more, which no result comes from.
    """
    return sizes.reach * (1 + (sizes.bands > 1))


def _kernel(sizes: Sizes, *refs: Ref) -> None:
    split = 2 * sizes.position
    tables, (q, *rest) = refs[:split], refs[split:]
    k = rest.pop(0) if sizes.content else None
    v, out, logsumexp, queries, keys, values, logits, sums, inverse = rest
    first, reach, step = _first(sizes), sizes.reach, Step(sizes)
    valid = valid_lanes(sizes)
    # Rows of keys are numbered from the first that a query of the band sees.
    halo = first - reach
    moved = step.wide_origin - step.origin + halo
    begin, end = 0, sizes.band + 2 * halo
    if halo:
        begin, end = jnp.where(step.is_first, halo, 0), end - jnp.where(step.is_last, halo, 0)

    def prepare(y: Any) -> None:
        query = q[0, y].astype(jnp.float32) * sizes.scale
        fill(queries, y + first, query)
        row, col = position_terms(query, tables, step.origin + y, sizes)
        for a, b in itertools.product(range(sizes.window), repeat=2):
            logits[y + first, a, b] = row[a] + col[b]
        fill(sums, y + first, None)

    def score(y: Any) -> None:
        assert k is not None
        shifts = spread(k.at[0, y - moved], keys, sizes)
        work = beside(shifts, sizes.depth, sizes.depth, sizes)
        if sizes.packing.lanes > LANES:
            everywhere(shifts, sizes.depth)
        each_lane_tile(sizes, lambda at: products(queries, keys, seen(y), y, at, sizes, work=work))

    def seen(y: Any) -> Callable[[int], Ref]:
        return lambda a: logits.at[y + 2 * reach - a, a]

    def softmax(y: Any) -> None:
        top = jnp.max(logits[y + first], axis=(0, 1))
        p = jnp.exp(logits[y + first] - top)
        logits[y + first] = p
        weight = jnp.sum(jnp.sum(p, axis=0), axis=0)
        inverse[y] = 1 / weight
        logsumexp[0, y] = jnp.where(valid, top + jnp.log(weight), 0)

    def gather(y: Any) -> None:
        shifts = spread(v.at[0, y - moved], values, sizes)
        work = beside(shifts, sizes.values, sizes.values, sizes)
        if sizes.packing.lanes > LANES:
            everywhere(shifts, sizes.values)
        each_lane_tile(sizes, lambda at: pull(seen(y), values, sums, y, at, sizes, work))

    def write(y: Any) -> None:
        result = sums[y + first, : sizes.values] * inverse[y]
        # Beside a pixel that is not a number, padding would be none either.
        out[0, y] = jnp.where(valid, result, 0).astype(out.dtype)

    clear_padding(keys, sizes.depth)
    repeat(sizes.band, prepare)
    if k is not None:
        repeat(end, score, begin)
    repeat(sizes.band, softmax)
    repeat(end, gather, begin)
    repeat(sizes.band, write)
