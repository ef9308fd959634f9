"""Which blocks of keys a block of queries visits, and what both kernels do with a block.

Letters: B batch, N heads, Q queries, K keys, W lanes of a block, C tiles to each side of the
diagonal in which the bias is not constant; see `plan`.

A block of queries meets up to three runs of blocks of keys: far behind the diagonal, around it, and
far ahead. A causal one has no third run. Within a run, blocks whose segments cannot meet are passed
over.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from moe.kernels.attention import dropout
from moe.kernels.attention.plan import LANES, Plan

# Added by the plain form to masked logits, and so the logsumexp of a query that sees no key.
MASKED = -1e9
# What masked logits become here: that far below, they are exactly zero beside any other, and in a
# query without keys too.
GONE = 2 * MASKED
NOTHING = 2**31 - 1  # the least segment of a block without tokens

Index = int | jax.Array


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive blocks of keys that are treated alike.

    Attributes:
      start: first block, counted from that of the chunk.
      stop: after the last.
      near: they have tiles; else the bias is the number `side` of the head.
      side: 0 behind the query, 1 ahead.
    """

    start: Index
    stop: Index
    near: bool = False
    side: int = 0

    def each(self, body: Callable[[Index], None]) -> None:
        """Calls the body with each block."""
        if isinstance(self.start, int) and isinstance(self.stop, int):
            if self.stop - self.start == 1:
                body(self.start)
            if self.stop - self.start < 2:
                return
        lax.fori_loop(self.start, self.stop, lambda j, _: body(j), None)


def runs(plan: Plan, i: Index, chunk: Index) -> Iterator[Run]:
    """The runs of the block `i` of queries in a chunk of keys; those empty for all are left out."""
    if not plan.tiled:
        yield Run(0, plan.chunk)
        return
    first = chunk * plan.chunk

    def clip(block: Index) -> Index:
        if isinstance(block, int) and isinstance(first, int):
            return min(max(block - first, 0), plan.chunk)
        return jnp.clip(block - first, 0, plan.chunk)

    behind, ahead = clip(i - plan.aside), clip(i + (0 if plan.causal else plan.aside) + 1)
    if plan.q_blocks > plan.aside + 1:
        yield Run(0, behind, side=0)
    yield Run(behind, ahead, near=True)
    if plan.k_blocks > plan.aside + 1 and not plan.causal:
        yield Run(ahead, plan.chunk, side=1)


def segment_ranges(plan: Plan, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """The least and the largest segment of each block, int32 [B * (2 q_blocks + 2 k_blocks)].

    Args:
      plan: of the call.
      queries: int32 [B, Q].
      keys: int32 [B, K].
    """

    def ends(segments: jax.Array, count: int) -> list[jax.Array]:
        blocks = segments.reshape(segments.shape[0], count, -1)
        least = jnp.min(jnp.where(blocks > 0, blocks, NOTHING), axis=2)
        return [least, jnp.max(jnp.maximum(blocks, 0), axis=2)]

    both = [*ends(queries, plan.q_blocks), *ends(keys, plan.k_blocks)]
    return jnp.concatenate(both, axis=1).reshape(-1)


def meet(plan: Plan, ranges, b: Index, i: Index, j: Index) -> jax.Array:
    """Inside a kernel: whether segments of two blocks overlap; `j` counts from the first key."""
    queries, keys = plan.q_blocks, plan.k_blocks
    start = b * (2 * queries + 2 * keys)
    low, high = ranges[start + i], ranges[start + queries + i]
    key_low = ranges[start + 2 * queries + j]
    key_high = ranges[start + 2 * queries + keys + j]
    return (low <= key_high) & (key_low <= high)


# ------------------------------------------------------------------------------ inside a kernel


def keys_of(plan: Plan, j: Index):
    """The slice of the keys of a block; `j` counts from the first of the chunk."""
    from jax.experimental import pallas as pl

    start = j * plan.columns
    return pl.ds(start if isinstance(start, int) else pl.multiple_of(start, LANES), plan.columns)


def over_tiles(plan: Plan, body: Callable[[int, int], None]) -> None:
    """Calls the body with each head of a block and the number of each of its tiles."""
    for g in range(plan.shared):
        for t in range(plan.tiles):
            body(g, t)


def window_of(plan: Plan, tile: int) -> slice:
    """The numbers of a bias that make a tile."""
    return slice(tile * plan.rows, (tile + 2) * plan.rows)


def across(row: jax.Array) -> jax.Array:
    """[1, L] -> [L, 128]: each number in all lanes of its row."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def along(column: jax.Array, width: int) -> jax.Array:
    """[L, 128], alike in all lanes -> [L, width]."""
    copies = width // LANES
    return column if copies == 1 else jnp.concatenate([column] * copies, axis=1)


def added(parts: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, parts)


def own_lanes(plan: Plan, g: int, rows: int) -> jax.Array:
    """bool [rows, W]: the lanes of one of the heads of a block."""
    lane = lax.broadcasted_iota(jnp.int32, (rows, plan.lanes), 1)
    return (lane >= g * plan.width) & (lane < (g + 1) * plan.width)


def of_head(plan: Plan, g: int, x: jax.Array) -> jax.Array:
    """[rows, W], zero in the lanes of other heads."""
    if plan.shared == 1:
        return x
    return jnp.where(own_lanes(plan, g, x.shape[0]), x, jnp.zeros_like(x))


def joined(plan: Plan, parts: list[jax.Array]) -> jax.Array:
    """[rows, W] of which each head's lanes are those of its part."""
    whole = parts[0]
    for g, part in enumerate(parts[1:], 1):
        whole = jnp.where(own_lanes(plan, g, whole.shape[0]), part, whole)
    return whole


def kept(plan: Plan, seed: jax.Array, i: Index, j: Index) -> jax.Array:
    """bool [rows, columns]: which probabilities of a block dropout leaves."""
    queries = i * plan.rows + lax.broadcasted_iota(jnp.int32, (plan.rows, LANES), 0)
    keys = j * plan.columns + lax.broadcasted_iota(jnp.int32, (8, plan.columns), 1)
    row, column = dropout.rows(seed, queries), dropout.columns(keys)[:1]
    return dropout.kept(along(row, plan.columns), column, plan.rate)


def product(left: jax.Array, right: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """float32 product of two blocks over one dimension of each."""
    a, b = contracted
    return lax.dot_general(
        left, right, (((a,), (b,)), ((), ())), preferred_element_type=jnp.float32
    )
