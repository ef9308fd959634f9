"""How a call is cut into blocks: the largest that pad little and fit into the memory of a core.

Letters: B batch, N heads, Q queries, K keys, H width of one head, W lanes of a block, G heads in
them, T rows of a block, M distance from which on a bias no longer changes, C tiles to each side of
the diagonal in which it is not constant.

Arrays are [B, L, N*H], as projections write them: a block is [T, W] of one sequence, a column of
heads. Narrow heads share 128 lanes: a product with the query of one head, zero in the lanes of the
others, is that head's alone, and costs what its padding would.

All keys of a column stay on the chip while its blocks of queries pass, as far as they fit; else
they come in chunks, which are fetched for each block of queries again.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from trainlib.sharding.kernels import core_memory

Shaped = jax.Array | jax.ShapeDtypeStruct
LANES = 128
_TYPES = (jnp.bfloat16, jnp.float32)
_BLOCKS = (512, 256, 128)  # T, best first: what a block takes beside its products is spread thinner
_WASTE = 1.15  # rows with padding over rows in whole tiles of 128, at the most, for a larger block
_SHARE = 0.75  # of a core's memory for what is counted here; the compiler adds to that


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one call, all of them after padding.

    Attributes:
      heads: N.
      width: H.
      queries: Q.
      keys: K.
      rows: queries of a block.
      columns: keys of a block; equal to `rows` where there are tiles.
      chunk: blocks of keys that are held at a time.
      tiled: there is a bias, or causality: logits near the diagonal have a tile added.
      aside: C.
      bias: there is one, and its gradient is wanted.
      causal: keys after the query are not seen.
      segments: queries see keys of their own segment alone.
      rate: of dropout.
    """

    heads: int
    width: int
    queries: int
    keys: int
    rows: int
    columns: int
    chunk: int
    tiled: bool = False
    aside: int = 0
    bias: bool = False
    causal: bool = False
    segments: bool = False
    rate: float = 0.0

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Of queries, keys and values."""
        return self.queries, self.keys, self.keys

    @property
    def lanes(self) -> int:
        """W."""
        return max(self.width, LANES)

    @property
    def shared(self) -> int:
        """G."""
        return self.lanes // self.width

    @property
    def head_columns(self) -> int:
        """N / G."""
        return self.heads // self.shared

    @property
    def q_blocks(self) -> int:
        return self.queries // self.rows

    @property
    def k_blocks(self) -> int:
        return self.keys // self.columns

    @property
    def chunks(self) -> int:
        return self.k_blocks // self.chunk

    @property
    def tiles(self) -> int:
        """Of one head: from C blocks behind the diagonal to C ahead of it, or to the diagonal."""
        if not self.tiled:
            return 0
        return self.aside + 1 if self.causal else 2 * self.aside + 1

    def memory(self, itemsize: int) -> int:
        """Bytes that the backward kernel, the larger one, holds of operands of this size."""
        row, area = self.lanes, self.rows * self.columns
        held = self.chunk * self.columns
        # Blocks are fetched and written while others are computed on.
        blocks = 2 * itemsize * row * (4 * self.rows + 4 * held)
        sums = 4 * row * (self.rows + 2 * held)
        tiles = 4 * area * self.shared * self.tiles * (2 if self.bias else 1)
        # Logits and what is made of them, of all heads of a block; found by compiling.
        spilled = 4 * area * (2 + 1.5 * self.shared)
        return int(blocks + sums + tiles + spilled)


def plan_of(
    query: Shaped,
    key: Shaped,
    bias: Shaped | None,
    *,
    causal: bool,
    segments: bool = False,
    rate: float = 0.0,
    block: int | None = None,
) -> Plan | None:
    """How a call is cut, or None where no block fits.

    Args:
      query: [B, Q, N, H].
      key: [B, K, N, H].
      bias: [N, 2 M + 1], or None.
      causal: keys after the query are not seen.
      segments: there are some.
      rate: of dropout.
      block: T; None chooses.
    """
    (queries, heads, width), keys = query.shape[1:], key.shape[1]
    distance = None if bias is None else bias.shape[1] // 2
    return _plan(
        (queries, keys, heads, width),
        distance,
        causal,
        segments,
        rate,
        block,
        query.dtype.itemsize,
        int(_SHARE * core_memory()),
    )


@functools.lru_cache(256)
def _plan(sizes, distance, causal, segments, rate, block, itemsize, memory) -> Plan | None:
    queries, keys, heads, width = sizes
    width = lanes_of(width)
    tiled = causal or distance is not None
    fitting = []
    for rows, columns in _shapes(queries, keys, tiled, block):
        blocks = _up(keys, columns) // columns
        for chunks in range(1, blocks + 1):
            chunk = -(-blocks // chunks)
            held = chunks * chunk * columns
            plan = Plan(
                heads=_up(heads, max(LANES // width, 1)),
                width=width,
                queries=_up(queries, rows),
                keys=held,
                rows=rows,
                columns=columns,
                chunk=chunk,
                tiled=tiled,
                aside=_aside(distance, queries, keys, rows),
                bias=distance is not None,
                causal=causal,
                # Padded keys are to be masked, but where causality does.
                segments=segments or (held > keys and not (causal and queries <= keys)),
                rate=rate,
            )
            if plan.memory(itemsize) <= memory:
                fitting.append(plan)
                break
    return min(fitting, key=lambda plan: (plan.chunks, -plan.rows * plan.columns), default=None)


def _shapes(queries: int, keys: int, tiled: bool, block: int | None) -> list[tuple[int, int]]:
    """Rows and columns that blocks may have."""
    if block is not None:
        return [(block, block)]
    found = []
    for most in _BLOCKS:
        rows, columns = (_block(size, most) for size in (queries, keys))
        if tiled:
            rows = columns = min(rows, columns)
        found.append((rows, columns))
    return list(dict.fromkeys(found))


def _block(size: int, most: int) -> int:
    """The largest that pads little."""
    least = _up(size, LANES)
    return next(n for n in _BLOCKS if n <= most and _up(size, n) <= max(_WASTE * least, LANES))


def _aside(distance: int | None, queries: int, keys: int, rows: int) -> int:
    """C: of tiles farther off, the nearest pair is M or more apart. 0 without a bias."""
    distance = min(distance or 0, max(queries, keys))
    return max(distance + rows - 2, 0) // rows


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def lanes_of(width: int) -> int:
    """Lanes of a head: so many that heads divide 128 lanes, or that those divide a head. At most
    four share them, as the code of a kernel grows with each.
    """
    return _up(width, LANES) if width > LANES else max(2 ** math.ceil(math.log2(width)), LANES // 4)


def fits(query: Shaped, key: Shaped, bias: Shaped | None = None, *, causal: bool = False) -> bool:
    """Whether `flash_attention` computes these: sizes known while tracing, none of them zero, one
    batch, heads and width, and not too large for the core that is traced for.

    Args:
      query: [B, Q, N, H].
      key: [B, K, N, H].
      bias: see `flash_attention`.
      causal: see there.
    """
    sizes = (*query.shape, *key.shape, *(() if bias is None else bias.shape))
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return False
    (batch, _, *heads), (key_batch, _, *key_heads) = query.shape, key.shape
    if batch != key_batch or heads != key_heads or (bias is not None and bias.shape[0] != heads[0]):
        return False
    if query.dtype != key.dtype or query.dtype not in _TYPES:
        return False
    return plan_of(query, key, bias, causal=causal) is not None
