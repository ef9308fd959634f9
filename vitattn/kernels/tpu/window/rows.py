"""What the forward and the backward kernel of windowed attention share: sizes, loops, products.

Dimension letters: H rows of a map, d query/key width a head, e value width a head, c channels of
either, K window, R = K // 2, S sublanes, L lanes.

Both kernels keep a row of keys (or values) in registers, shifted by each column of the window, and
bring the K rows of queries that see it past it: the query in row y + R - a sees row y at place a of
its window. A row of keys is so loaded and rotated once for all rows of the window, and what queries
give to its gradient is complete when it is left. Rows of queries are numbered from R, and there are
R more on both sides of the map, which no result comes from.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vitattn.kernels.plain.attend import MASK_BIAS
from vitattn.kernels.tpu.registers import LANES, SUBLANES
from vitattn.kernels.tpu.window.packing import Packing

Array = jax.Array
Ref = Any  # of an array in the memory of the kernel
Part = Callable[[Any], None]  # does something for a slice of channels

_CHUNK = 8  # channels whose registers are held at a time
_HELD = 32  # registers held, of 64
_UNROLLED = 8  # channels up to which the loop over chunks is written out


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes and options of one call.

    Attributes:
      packing: of the maps.
      depth: d.
      values: e.
      content: with keys.
      position: with tables.
      mask_border: see `packed_window_attention`.
      scale: of the logits.
      bands: of rows, one a step of the grid.
    """

    packing: Packing
    depth: int
    values: int
    content: bool
    position: bool
    mask_border: bool
    scale: float
    bands: int = 1

    @property
    def window(self) -> int:
        """K."""
        return self.packing.window

    @property
    def reach(self) -> int:
        """R."""
        return self.packing.reach

    @property
    def band(self) -> int:
        """h rows of a step; H where it has all of them."""
        return -(-self.packing.height // self.bands)

    @property
    def rows(self) -> int:
        """h + 2R rows of queries that see the keys of a band, or of keys that its queries see."""
        return self.band + 2 * self.reach

    @property
    def register(self) -> tuple[int, int]:
        """[S, L], one number for each pixel of a row."""
        return SUBLANES, self.packing.lanes

    @property
    def parts(self) -> tuple[slice, slice]:
        """Channels of a query that rows of the window contribute to, and columns."""
        return slice(0, self.depth // 2), slice(self.depth // 2, self.depth)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Channels in equal parts, the last of which may reach beyond them.

    Attributes:
      count: of parts.
      size: channels of a part.
    """

    count: int
    size: int

    @staticmethod
    def of(channels: int) -> Chunks:
        """As few parts of at most 8 channels as there are."""
        count = max(1, -(-channels // _CHUNK))
        return Chunks(count, -(-channels // count))

    @property
    def total(self) -> int:
        """Channels with the padding."""
        return self.count * self.size

    def each(self, body: Part) -> None:
        """Runs body(channels) for every part."""
        from jax.experimental import pallas as pl

        def part(n: Any) -> None:
            body(pl.ds(n * self.size, self.size))

        if self.total <= _UNROLLED:
            for n in range(self.count):
                part(n)
        else:
            repeat(self.count, part)

    def blocks(self, window: int) -> list[slice]:
        """Columns of the window in blocks whose registers of one part can be held at a time."""
        size = max(1, _HELD // self.size)
        size = -(-window // -(-window // size))
        return [slice(n, min(n + size, window)) for n in range(0, window, size)]


def repeat(count: Any, body: Callable[[Any], None], first: Any = 0) -> None:
    """Runs body(first), .. up to body(count - 1) in a loop of the kernel."""
    lax.fori_loop(first, count, lambda n, _: body(n), None)


def each_lane_tile(sizes: Sizes, body: Callable[[Any], None]) -> None:
    """Runs body(128 lanes) for every lane tile of a row."""
    from jax.experimental import pallas as pl

    if sizes.packing.lanes == LANES:
        body(slice(None))
    else:
        count = sizes.packing.lanes // LANES
        repeat(count, lambda n: body(pl.ds(pl.multiple_of(n * LANES, LANES), LANES)))


def valid_lanes(sizes: Sizes) -> Array:
    """Which lanes hold pixels, bool [S, L]."""
    packing = sizes.packing
    lane = lax.broadcasted_iota(jnp.int32, sizes.register, 1)
    used = lane < packing.across * packing.pitch
    return used & (lax.rem(lane, packing.pitch) < packing.width)


def shifted(x: Array, offset: int) -> Array:
    """[.., L] with lane i + offset at lane i."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.roll(x, -offset % x.shape[-1], x.ndim - 1) if offset else x


def clear_padding(into: Ref, channels: int) -> None:
    """Zeros in [K, chunks of c, S, L] beyond `channels`, where a row of keys leaves them."""
    if into.shape[1] > channels:
        shape = (into.shape[0], into.shape[1] - channels, *into.shape[2:])
        into[:, channels:] = jnp.zeros(shape, jnp.float32)


def spread(row: Ref, into: Ref, sizes: Sizes) -> Part:
    """What writes channels of a row [c, S, L] of keys or values to float32 [K, chunks of c, S, L],
    shifted by each column of the window.
    """

    def part(channels: Any) -> None:
        x = row[channels].astype(jnp.float32)
        for b in range(sizes.window):
            into[b, channels] = shifted(x, b - sizes.reach)

    return part


def fill(into: Ref, row: Any, values: Array | None) -> None:
    """Writes channels [c, S, L] of a row, None for no channels, and zeros behind them."""
    channels = 0 if values is None else values.shape[0]
    if values is not None:
        into[row, :channels] = values
    if channels < into.shape[1]:
        missing = into.shape[1] - channels
        into[row, channels:] = jnp.zeros((missing, *into.shape[2:]), jnp.float32)


def position_terms(
    query: Array, tables: Sequence[Ref], y: Any, sizes: Sizes
) -> tuple[list[Array], list[Array]]:
    """Logits of a row of queries without keys: a term [S, L] for each row of the window, and one
    for each column.

    Args:
      query: [d, S, L], scaled.
      tables: of rows [K, d // 2, S, L] and of columns, the same number in every lane; or none.
      y: their row of the map.
      sizes: of the call.
    """
    packing = sizes.packing
    x = lax.rem(lax.broadcasted_iota(jnp.int32, sizes.register, 1), packing.pitch)
    found: list[list[Array]] = []
    for axis, (part, place, size) in enumerate(
        zip(sizes.parts, (y, x), (packing.height, packing.width), strict=True)
    ):
        terms = []
        for n in range(sizes.window):
            term = jnp.zeros(sizes.register, jnp.float32)
            if tables and part.stop > part.start:  # a query of one channel has none for rows
                term = jnp.sum(query[part] * tables[axis][n], axis=0)
            if sizes.mask_border:
                key = place + (n - sizes.reach)
                term += jnp.where((key >= 0) & (key < size), 0.0, MASK_BIAS)
            terms.append(term)
        found.append(terms)
    return found[0], found[1]


def _each_block(
    chunks: Chunks, sizes: Sizes, part: Callable[[Any, slice], None], work: Part | None
) -> None:
    """Calls `part` with every piece of the channels and block of columns of the window, and `work`
    with the piece before its first block.
    """

    def piece(channels: Any) -> None:
        if work:
            work(channels)
        for block in chunks.blocks(sizes.window):
            part(channels, block)

    chunks.each(piece)


def products(
    left: Ref,
    right: Ref,
    into: Callable[[int], Ref],
    y: Any,
    lanes: Any,
    sizes: Sizes,
    begin: Callable[[int, int], Array] | None = None,
    end: Callable[[int, int, Array], Array] = lambda a, b, value: value,
    work: Part | None = None,
) -> None:
    """Products over channels, of the row of queries that sees row y at a, in into(a)[b].

    Args:
      left: [h + 2R or more, c, S, L], of queries.
      right: [K, c, S, L], row y of the keys shifted by each column of the window.
      into: a -> [K, S, L].
      y: the row of keys.
      lanes: of one lane tile.
      sizes: of the call.
      begin: (a, b) -> what products are added to; None for what stands in `into`.
      end: (a, b, sum) -> what is written.
      work: that is done on the same channels before; see `beside`.
    """
    chunks = Chunks.of(right.shape[1])
    pairs = list(itertools.product(range(sizes.window), repeat=2))
    alone = chunks.count == 1

    def start(a: int, b: int) -> Array:
        return begin(a, b) if begin and alone else into(a)[b, :, lanes]

    def part(channels: Any, block: slice) -> None:
        columns = range(sizes.window)[block]
        held = [right[b, channels, :, lanes] for b in columns]
        for a in range(sizes.window):
            x = left[y + 2 * sizes.reach - a, channels, :, lanes]
            for b, one in zip(columns, held, strict=True):
                value = start(a, b) + jnp.sum(x * one, axis=0)
                into(a)[b, :, lanes] = end(a, b, value) if alone else value

    if begin and not alone:
        for a, b in pairs:
            into(a)[b, :, lanes] = begin(a, b)
    _each_block(chunks, sizes, part, work)
    if not alone:
        for a, b in pairs:
            into(a)[b, :, lanes] = end(a, b, into(a)[b, :, lanes])


def pull(
    weights: Callable[[int], Ref],
    right: Ref,
    into: Ref,
    y: Any,
    lanes: Any,
    sizes: Sizes,
    work: Part | None = None,
) -> None:
    """Adds weights(a)[b] right[b], summed over b, to the row of queries that sees row y at a.

    Args:
      weights: a -> [K, S, L].
      right: [K, c, S, L], row y of keys or values shifted by each column of the window.
      into: [h + 2R or more, c, S, L].
      y: the row of keys.
      lanes: of one lane tile.
      sizes: of the call.
      work: that is done on the same channels; see `beside`.
    """

    def part(channels: Any, block: slice) -> None:
        held = right[block, channels, :, lanes]
        for a in range(sizes.window):
            weight = weights(a)[block, :, lanes]
            row = y + 2 * sizes.reach - a
            into[row, channels, :, lanes] += jnp.sum(weight[:, None] * held, axis=0)

    _each_block(Chunks.of(right.shape[1]), sizes, part, work)


def push(
    weights: Callable[[int], Ref],
    left: Ref,
    into: Ref,
    y: Any,
    lanes: Any,
    sizes: Sizes,
    work: Part | None = None,
) -> None:
    """Writes to into[b] what the rows of queries that see row y give to it, weights(a)[b] left[a],
    before it is shifted back.

    Args:
      weights: a -> [K, S, L].
      left: [h + 2R or more, c, S, L], of queries.
      into: [K, c, S, L].
      y: the row of keys.
      lanes: of one lane tile.
      sizes: of the call.
      work: that is done on the same channels; see `beside`.
    """

    def part(channels: Any, block: slice) -> None:
        sums = None
        for a in range(sizes.window):
            x = left[y + 2 * sizes.reach - a, channels, :, lanes]
            product = weights(a)[block, :, lanes][:, None] * x[None]
            sums = product if sums is None else sums + product
        into[block, channels, :, lanes] = sums

    _each_block(Chunks.of(into.shape[1]), sizes, part, work)


def shift_back(sums: Ref, into: Ref, valid: Array, sizes: Sizes) -> Part:
    """What writes channels of a row [c, S, L] of gradients: what `push` left for each column."""

    def part(channels: Any) -> None:
        parts = [shifted(sums[b, channels], sizes.reach - b) for b in range(sizes.window)]
        into[channels] = jnp.where(valid, tree(jnp.add, parts), 0).astype(into.dtype)

    return part


def everywhere(work: Part, channels: int) -> None:
    """Does work for all channels."""
    chunks = Chunks.of(channels)
    if chunks.total > channels:
        work(slice(0, channels))
    else:
        chunks.each(work)


def beside(work: Part, channels: int, others: int, sizes: Sizes) -> Part | None:
    """Rotations take a unit of their own: in the loop over the channels of products they cost
    little.

    Returns:
      `work` on `channels` where it can be done in a loop over `others`; None where it cannot and is
      done at once, or where rows are of several lane tiles, around whose loop it is done.
    """
    if sizes.packing.lanes > LANES:
        return None
    chunks = Chunks.of(channels)
    looped = chunks.total > _UNROLLED  # without a loop the compiler finds the order by itself
    if looped and Chunks.of(others) == chunks and chunks.total == channels:
        return work
    everywhere(work, channels)
    return None


def tree(operation: Callable[[Array, Array], Array], terms: Sequence[Array]) -> Array:
    """Combines terms in pairs: a chain of as many operations would wait for each of them."""
    terms = list(terms)
    while len(terms) > 1:
        pairs = [operation(x, y) for x, y in zip(terms[::2], terms[1::2], strict=False)]
        terms = [*pairs, *terms[2 * len(pairs) :]]
    return terms[0]
