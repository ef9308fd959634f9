"""The backward kernel of windowed attention on packed maps.

Dimension letters: T tiles, H rows of a map, d query/key width a head, e value width a head, K
window, R = K // 2, S sublanes, L lanes.

A step of the grid is a band of one tile of maps (`bands`). Probabilities follow from the sums that
the forward kernel left, so that one pass over the rows of keys is enough:

    each row of queries    position terms - logsumexp, delta = out . dout
    each row of keys       for the K rows of queries that see it, and each column of the window:
                           p = exp(q . k + terms), ds = p (dout . v - delta)
                           dv, dk of the row = sum of p dout, of ds q, shifted back
                           dq of the K rows += ds k; sums of ds over rows, over columns
    each row of queries    dq += sums times tables; gradients of tables += sums times q

What R rows of queries on either side of a band get from its keys is part of their gradient. The
last 2R rows stay in memory for the next band, and the others are written by copies of their own:
blocks of results do not begin where a band does not.

Gradients of tables are summed over all tiles in the memory of the kernel, a register for each
number; the sum over its lanes is left to XLA.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vitattn.kernels.plain.attend import MASK_BIAS
from vitattn.kernels.tpu.registers import LANES
from vitattn.kernels.tpu.window.bands import Blocks, Step, filled_up
from vitattn.kernels.tpu.window.rows import (
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
    from jax.experimental.pallas import tpu as pltpu

    blocks, window, rows, height = Blocks(sizes), sizes.window, sizes.rows, q.shape[1]
    depth, values = Chunks.of(sizes.depth).total, Chunks.of(sizes.values).total
    q, out, dout, logsumexp = (filled_up(x, sizes) for x in (q, out, dout, logsumexp))
    keys = [filled_up(x, sizes) for x in (k, v) if x is not None]
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

    names = [*scratch]
    held = [blocks.scratch(*shape) for shape in scratch.values()]
    of_queries = blocks.band(q)
    if sizes.bands > 1:
        names += ["staged", "copied"]
        held += [blocks.scratch(rows, sizes.depth, dtype=q.dtype), pltpu.SemaphoreType.DMA(())]
        of_queries = pl.BlockSpec(memory_space=pl.ANY)

    def body(*refs: Ref) -> None:
        split = len(refs) - len(names)
        _kernel(sizes, refs[:split], dict(zip(names, refs[split:], strict=True)))

    dq, *rest = pl.pallas_call(
        body,
        grid=blocks.grid,
        in_specs=[
            *map(blocks.whole, tables),
            blocks.wide(q),
            *map(blocks.band, keys),
            *map(blocks.wide, (out, dout, logsumexp)),
        ],
        out_specs=[of_queries, *map(blocks.band, keys), *map(blocks.whole, tables)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *keys, *tables)],
        scratch_shapes=held,
        # Gradients take the place of what they are of: no band reads rows that one before it wrote.
        input_output_aliases={len(tables) + n: n for n in range(1 + len(keys))},
        compiler_params=blocks.parameters(in_order=True),
        interpret=interpret,
        name="window_backward",
    )(*tables, q, *keys, out, dout, logsumexp)
    dk = None if k is None else rest.pop(0)[:, :height]
    dv, *dtables = rest
    return dq[:, :height], dk, dv[:, :height], dtables


def _kernel(sizes: Sizes, refs: Sequence[Ref], at: dict[str, Ref]) -> None:
    from jax.experimental import pallas as pl

    split = 2 * sizes.position
    tables, (q, *rest) = refs[:split], refs[split:]
    k = rest.pop(0) if sizes.content else None
    v, out, dout, logsumexp, dq, *rest = rest
    dk = rest.pop(0) if sizes.content else None
    dv, *dtables = rest
    band, reach, step = sizes.band, sizes.reach, Step(sizes)
    valid = valid_lanes(sizes)
    zeros = jnp.zeros((sizes.window, *sizes.register), jnp.float32)
    moved = step.wide_origin - step.origin

    def prepare(y: Any) -> None:
        from_map = y - moved
        query = q[0, from_map].astype(jnp.float32) * sizes.scale
        cotangent = dout[0, from_map].astype(jnp.float32)
        fill(at["queries"], y + reach, query)
        fill(at["douts"], y + reach, cotangent)
        delta = jnp.sum(cotangent * out[0, from_map].astype(jnp.float32), axis=0)
        at["delta"][y + reach] = -delta
        row, col = position_terms(query, tables, step.origin + y, sizes)
        for n in range(sizes.window):
            # Padding has no probabilities.
            term = row[n] - logsumexp[0, from_map]
            at["row"][y + reach, n] = jnp.where(valid, term, MASK_BIAS)
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
        result = jnp.where(valid, result, 0).astype(dq.dtype)
        if sizes.bands == 1:
            dq[0, y] = result
        else:
            at["staged"][row] = result

    @pl.when((pl.program_id(0) == 0) & (step.number == 0))
    def _():
        for dtable in dtables:
            dtable[...] = jnp.zeros(dtable.shape, jnp.float32)

    clear_padding(at["keys"], sizes.depth)
    clear_padding(at["values"], sizes.values)
    if sizes.bands == 1:
        before, behind = 0, band
        for n in range(reach):
            outside(n)
            outside(band + reach + n)
    else:
        before, behind = _beside_band(at, sizes, step, outside)
    _begin_gradients(at, sizes, step)
    repeat(behind, prepare, before)
    if tables:
        _outside_map(at, sizes, step)
    repeat(band, one_row)
    if sizes.bands == 1:
        repeat(band, finish)
    else:
        repeat(band + reach, finish, -reach)
        _write_gradients(dq, at, sizes, step)


def _beside_band(
    at: dict[str, Ref], sizes: Sizes, step: Step, outside: Callable[[int], None]
) -> tuple[Any, Any]:
    """The rows of queries that there are, of those from -R to h + R; clears the others, and what
    no key of the band sees.
    """
    from jax.experimental import pallas as pl

    band, reach = sizes.band, sizes.reach
    ends = (step.is_first, range(reach)), (step.is_last, range(band + reach, sizes.rows))
    for is_end, rows in ends:

        @pl.when(is_end)
        def _(rows: range = rows) -> None:
            for row in rows:
                outside(row)

    for row in (*range(2 * reach), *range(band, sizes.rows)):
        at["ds"][row] = jnp.zeros(at["ds"].shape[1:], jnp.float32)
    return jnp.where(step.is_first, 0, -reach), band + jnp.where(step.is_last, 0, reach)


def _begin_gradients(at: dict[str, Ref], sizes: Sizes, step: Step) -> None:
    """Zeros, or what the band before left of its last 2R rows, for gradients of queries."""
    from jax.experimental import pallas as pl

    shared = 2 * sizes.reach * (sizes.bands > 1)

    def clear(row: Any) -> None:
        fill(at["dq"], row, None)

    def take_over(row: Any) -> None:
        at["dq"][row] = at["dq"][row + sizes.band]

    if shared:
        pl.when(step.is_first)(lambda: repeat(shared, clear))
        pl.when(jnp.logical_not(step.is_first))(lambda: repeat(shared, take_over))
    repeat(sizes.rows, clear, shared)


def _outside_map(at: dict[str, Ref], sizes: Sizes, step: Step) -> None:
    """ds of the keys in rows outside the map: they are zeros, so that it is -p delta."""
    from jax.experimental import pallas as pl

    reach, band = sizes.reach, sizes.band
    pairs = [*itertools.product(range(reach, band + reach), range(sizes.window))]
    above = [(row, a) for row, a in pairs if row + a < 2 * reach]
    below = [(row, a) for row, a in pairs if row + a >= band + 2 * reach]

    def write(pairs: Sequence[tuple[int, int]]) -> None:
        for row, a in pairs:
            p = jnp.exp(at["row"][row, a] + at["col"][row])  # [K, S, L]
            at["ds"][row, a] = p * at["delta"][row]

    if sizes.bands == 1:
        write(above + below)
        return
    pl.when(step.is_first)(lambda: write(above))
    pl.when(step.is_last)(lambda: write(below))


def _write_gradients(dq: Ref, at: dict[str, Ref], sizes: Sizes, step: Step) -> None:
    """Copies the rows of queries that get nothing more to dq [T, n h, d, S, L]."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    band, reach, tile = sizes.band, sizes.reach, pl.program_id(0)

    def copy(row: int, count: int) -> None:
        to = dq.at[tile, pl.ds(step.origin + row - reach, count)]
        one = pltpu.make_async_copy(at["staged"].at[pl.ds(row, count)], to, at["copied"])
        one.start()
        one.wait()

    pl.when(step.is_first)(lambda: copy(reach, band - reach))
    pl.when(step.is_last)(lambda: copy(0, band + reach))
    pl.when(jnp.logical_not(step.is_first | step.is_last))(lambda: copy(0, band))


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
