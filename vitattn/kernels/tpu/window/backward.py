"""The backward kernel of windowed attention on packed maps.

Dimension letters: T tiles, H rows of a map, d query/key width a head, e value width a head, K
window, R = K // 2, S sublanes, L lanes.

A step of the grid is one tile of maps. Probabilities follow from the sums that the forward kernel
left, so that one pass over the rows of keys is enough:

    each row of queries    position terms - logsumexp, delta = out . dout
    each row of keys       for the K rows of queries that see it, and each column of the window:
                           p = exp(q . k + terms), ds = p (dout . v - delta)
                           dv, dk of the row = sum of p dout, of ds q, shifted back
                           dq of the K rows += ds k; sums of ds over rows, over columns
    each row of queries    dq += sums times tables; gradients of tables += sums times q

Gradients of tables are summed over all tiles in the memory of the kernel, a register for each
number; the sum over its lanes is left to XLA.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vitattn.kernels.plain.attend import MASK_BIAS
from vitattn.kernels.tpu.registers import LANES
from vitattn.kernels.tpu.window.rows import (
    Blocks,
    Chunks,
    Part,
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
    push,
    repeat,
    shift_back,
    spread,
    valid_lanes,
)

Array = jax.Array


def backward(
    q: Array,
    k: Array | None,
    v: Array,
    tables: Sequence[Array],
    out: Array,
    logsumexp: Array,
    dout: Array,
    sizes: Sizes,
    interpret: bool,
) -> tuple[Array, Array | None, Array, list[Array]]:
    """The kernel.

    Args:
      q: [T, H, d, S, L].
      k: [T, H, d, S, L], or None.
      v: [T, H, e, S, L].
      tables: float32 [K, d // 2, S, L] and [K, d - d // 2, S, L], the same number in every lane; or
        none.
      out: [T, H, e, S, L], of the forward kernel.
      logsumexp: float32 [T, H, S, L], likewise.
      dout: [T, H, e, S, L].
      sizes: of the call.
      interpret: run it step by step on any backend.

    Returns:
      Gradients of q, k (None without keys), v in their types, and of the tables as they were
      given: what the pixels of each lane contribute to them.
    """
    from jax.experimental import pallas as pl

    blocks, window, rows = Blocks(sizes), sizes.window, sizes.rows
    depth, values = Chunks.of(sizes.depth).total, Chunks.of(sizes.values).total
    keys = () if k is None else (k,)
    scratch = {
        "queries": (rows, depth),
        "douts": (rows, values),
        "row": (rows, window),
        "col": (rows, window),
        "delta": (rows,),
        "dq": (rows, depth),
        "keys": (window, depth),
        "values": (window, values),
        "dkeys": (window, depth),
        "dvalues": (window, values),
        "p": (window, window),
        "ds": (rows, window, window),
    }

    def body(*refs: Ref) -> None:
        split = len(refs) - len(scratch)
        _kernel(sizes, refs[:split], dict(zip(scratch, refs[split:], strict=True)))

    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *keys, v, *tables)]
    dq, *rest = pl.pallas_call(
        body,
        grid=(sizes.packing.tiles,),
        in_specs=[
            *map(blocks.whole, tables),
            *[blocks.tile(x) for x in (q, *keys, v, out, dout)],
            blocks.statistic(),
        ],
        out_specs=[*[blocks.tile(x) for x in (q, *keys, v)], *map(blocks.whole, tables)],
        out_shape=results,
        scratch_shapes=[blocks.scratch(*shape) for shape in scratch.values()],
        compiler_params=blocks.parameters(in_order=True),
        interpret=interpret,
        name="window_backward",
    )(*tables, q, *keys, v, out, dout, logsumexp)
    dk = rest.pop(0) if keys else None
    dv, *dtables = rest
    return dq, dk, dv, dtables


def _kernel(sizes: Sizes, refs: Sequence[Ref], at: dict[str, Ref]) -> None:
    from jax.experimental import pallas as pl

    split = 2 * sizes.position
    tables, (q, *rest) = refs[:split], refs[split:]
    k = rest.pop(0) if sizes.content else None
    v, out, dout, logsumexp, dq, *rest = rest
    dk = rest.pop(0) if sizes.content else None
    dv, *dtables = rest
    height, reach = sizes.packing.height, sizes.reach
    valid = valid_lanes(sizes)
    zeros = jnp.zeros((sizes.window, *sizes.register), jnp.float32)

    def prepare(y: Any) -> None:
        query = q[0, y].astype(jnp.float32) * sizes.scale
        cotangent = dout[0, y].astype(jnp.float32)
        fill(at["queries"], y + reach, query)
        fill(at["douts"], y + reach, cotangent)
        fill(at["dq"], y + reach, None)
        at["delta"][y + reach] = -jnp.sum(cotangent * out[0, y].astype(jnp.float32), axis=0)
        row, col = position_terms(query, tables, y, sizes)
        for n in range(sizes.window):
            # Padding has no probabilities.
            at["row"][y + reach, n] = jnp.where(valid, row[n] - logsumexp[0, y], MASK_BIAS)
            at["col"][y + reach, n] = col[n]

    def outside(y: int) -> None:
        fill(at["queries"], y, None)
        fill(at["douts"], y, None)
        at["delta"][y] = zeros[0]
        at["row"][y] = zeros + MASK_BIAS
        at["col"][y] = zeros

    def one_row(y: Any) -> None:
        rows = _Row(
            keys=None if k is None else spread(k.at[0, y], at["keys"], sizes),
            values=spread(v.at[0, y], at["values"], sizes),
            dkeys=None if dk is None else shift_back(at["dkeys"], dk.at[0, y], valid, sizes),
            dvalues=shift_back(at["dvalues"], dv.at[0, y], valid, sizes),
        )
        if sizes.packing.lanes == LANES:
            _one_row(y, slice(None), at, sizes, rows)
            return
        everywhere(rows.values, sizes.values)
        if rows.keys:
            everywhere(rows.keys, sizes.depth)
        each_lane_tile(sizes, lambda lanes: _one_row(y, lanes, at, sizes, rows))
        everywhere(rows.dvalues, sizes.values)
        if rows.dkeys:
            everywhere(rows.dkeys, sizes.depth)

    def finish(y: Any) -> None:
        row = y + reach
        for axis, (part, table, dtable) in enumerate(
            zip(sizes.parts, tables, dtables, strict=False)
        ):
            if part.stop > part.start:
                # Of a row of the window summed over its columns, and the other way round.
                weight = jnp.sum(at["ds"][row], axis=1 - axis)[:, None]
                at["dq"][row, part] += jnp.sum(weight * table[...], axis=0)
                dtable[...] += weight * at["queries"][row, part][None]
        result = at["dq"][row, : sizes.depth] * sizes.scale
        dq[0, y] = jnp.where(valid, result, 0).astype(dq.dtype)

    @pl.when(pl.program_id(0) == 0)
    def _():
        for dtable in dtables:
            dtable[...] = jnp.zeros(dtable.shape, jnp.float32)

    clear_padding(at["keys"], sizes.depth)
    clear_padding(at["values"], sizes.values)
    for n in range(reach):
        outside(n)
        outside(height + reach + n)
    repeat(height, prepare)
    if tables:
        _outside(at, sizes)
    repeat(height, one_row)
    repeat(height, finish)


def _outside(at: dict[str, Ref], sizes: Sizes) -> None:
    """ds of the keys in rows outside the map: they are zeros, so that it is -p delta."""
    reach, height = sizes.reach, sizes.packing.height
    for y, a in itertools.product(range(height), range(sizes.window)):
        if not 0 <= y + a - reach < height:
            row = y + reach
            p = jnp.exp(at["row"][row, a] + at["col"][row])  # [K, S, L]
            at["ds"][row, a] = p * at["delta"][row]


@dataclasses.dataclass(frozen=True)
class _Row:
    """What is done with channels of a row: keys and values are shifted, gradients shifted back."""

    keys: Part | None
    values: Part
    dkeys: Part | None
    dvalues: Part


def _one_row(y: Any, lanes: Any, at: dict[str, Ref], sizes: Sizes, work: _Row) -> None:
    """What row y of the keys has to do with the queries that see it."""
    rows = [y + 2 * sizes.reach - a for a in range(sizes.window)]  # of queries

    def p(a: int) -> Ref:
        return at["p"].at[a]

    def ds(a: int) -> Ref:
        return at["ds"].at[rows[a], a]

    def term(a: int, b: int) -> Array:
        return at["row"][rows[a], a, :, lanes] + at["col"][rows[a], b, :, lanes]

    def delta(a: int, _: int) -> Array:
        return at["delta"][rows[a], :, lanes]

    def times_p(a: int, b: int, value: Array) -> Array:
        return p(a)[b, :, lanes] * value

    def exp(_: int, __: int, value: Array) -> Array:
        return jnp.exp(value)

    depth, values = sizes.depth, sizes.values
    if work.keys:
        spreads = beside(work.keys, depth, depth, sizes)
        products(at["queries"], at["keys"], p, y, lanes, sizes, term, exp, spreads)
    else:
        for a, b in itertools.product(range(sizes.window), repeat=2):
            p(a)[b, :, lanes] = jnp.exp(term(a, b))
    spreads = beside(work.values, values, values, sizes)
    products(at["douts"], at["values"], ds, y, lanes, sizes, delta, times_p, spreads)
    push(p, at["douts"], at["dvalues"], y, lanes, sizes)
    # A row that nothing is added to any more is shifted back beside the products that follow.
    back = beside(work.dvalues, values, depth if work.dkeys else 0, sizes)
    if work.dkeys:
        push(ds, at["queries"], at["dkeys"], y, lanes, sizes, back)
        back = beside(work.dkeys, depth, depth, sizes)
        pull(ds, at["keys"], at["dq"], y, lanes, sizes, back)
