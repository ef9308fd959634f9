"""Blocks of the kernels for large maps: how many rows of keys, and how many queries, at a time.

Letters: H W map, d query/key width a head, e value width a head, R rows of a block of keys, T
queries of a tile.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vitattn.kernels.tpu.registers import LANES, PACKED, SUBLANES, filled

# Rows beside content and positions: -logsumexp in three parts, and one that masks padding.
EXTRA = 8
_LOGITS = 800 * 1024  # computed at once, so that the program is of a bounded size
_MOST_QUERIES = 1664
_BLOCK, _TILE = 150, 1200  # cycles until the units are busy, of a block and of a tile


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of one call.

    Attributes:
      height: H.
      width: W.
      depth: d.
      values: e.
      tables: there are position terms.
      rows: R, a multiple of 8 or H.
      queries: T, a multiple of 128.
    """

    height: int
    width: int
    depth: int
    values: int
    tables: bool
    rows: int
    queries: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def tiles(self) -> int:
        """Of queries."""
        return -(-self.pixels // self.queries)

    @property
    def blocks(self) -> int:
        """Of keys."""
        return -(-self.height // self.rows)

    @property
    def keys(self) -> int:
        """Of a block, as rows of logits; those after R W are masked."""
        return filled(self.rows * self.width, PACKED)

    @property
    def key_lanes(self) -> int:
        """The same as lanes."""
        return filled(self.rows * self.width, LANES)

    @property
    def lanes(self) -> int:
        """Of the map: the last tile and the last block may be ragged."""
        last = (self.blocks - 1) * self.rows * self.width
        return filled(max(self.tiles * self.queries, last + self.key_lanes), LANES)

    @property
    def content(self) -> int:
        """d in whole registers."""
        return filled(self.depth, SUBLANES)

    @property
    def sums(self) -> int:
        """e and two rows more in whole registers."""
        return filled(self.values + 2, SUBLANES)

    @property
    def row_terms(self) -> int:
        """R in whole registers."""
        return filled(self.rows, SUBLANES)

    @property
    def all_row_terms(self) -> int:
        """Of all blocks."""
        return self.blocks * self.row_terms

    @property
    def column_terms(self) -> int:
        """W in whole registers."""
        return filled(self.width, SUBLANES) if self.tables else 0

    @property
    def head(self) -> int:
        """Row terms, extra rows and content; row terms differ from block to block."""
        return filled(self.row_terms + EXTRA + self.content, PACKED)

    @property
    def contracted(self) -> int:
        """The depth of the product of augmented keys and queries."""
        return filled(self.head + self.column_terms, PACKED)

    @property
    def gradients(self) -> int:
        """The rows of its gradient that count."""
        return filled(self.row_terms + self.content + self.column_terms, PACKED)

    @property
    def offsets(self) -> tuple[int, int]:
        """Rows of the tables of rows and columns in whole registers."""
        return tuple(filled(2 * side - 1, PACKED) for side in (self.height, self.width))  # type: ignore

    def cycles(self) -> float:
        """Of forward and backward for one head, by four matrix units of 128 x 128."""
        depth = -(-self.contracted // LANES)
        columns = (
            filled(self.gradients, PACKED)
            + 2 * filled(self.sums, PACKED)
            + filled(self.content, PACKED)
        )
        block = self.keys * (2 * depth + 1) + columns * self.key_lanes / LANES
        block = block * self.queries / LANES / 4
        return self.tiles * (self.blocks * (block + _BLOCK) + _TILE)

    def memory(self, itemsize: int) -> int:
        """Bytes of VMEM of the backward kernel."""
        padded = filled(self.contracted, LANES)
        operands = 2 * (3 * self.content + 4 * self.sums) * self.lanes * itemsize
        keys = self.blocks * self.key_lanes
        kept = keys * (padded + LANES + self.gradients) * itemsize
        sums = 4 * keys * (self.content + self.sums)
        tile = 4 * self.queries * (2 * padded + 3 * self.all_row_terms + 3 * sum(self.offsets))
        return operands + kept + sums + tile + 4 * 3 * self.keys * self.queries


def chosen(
    size: tuple[int, int], depth: int, values: int, tables: bool, itemsize: int, memory: int
) -> Blocks | None:
    """The blocks that take the fewest cycles, or None where none fit into the memory."""
    return _chosen(size, depth, values, tables, itemsize, memory)


@functools.cache
def _chosen(size, depth, values, tables, itemsize, memory) -> Blocks | None:
    height, width = size
    rows = {height, *range(SUBLANES, height, SUBLANES)}
    queries = range(LANES, min(filled(height * width, LANES), _MOST_QUERIES) + 1, LANES)
    found = (
        Blocks(height, width, depth, values, tables, r, t)
        for r in rows
        for t in queries
        if r * width * t <= _LOGITS or (r <= SUBLANES and t == LANES)
    )
    fitting = (blocks for blocks in found if blocks.memory(itemsize) <= memory)
    return min(fitting, key=lambda b: (b.cycles(), b.rows, b.queries), default=None)


def ones_of_keys(b: Blocks) -> np.ndarray:
    """float32 [rows + extra + column terms, key lanes]: what multiplies the terms of a query.

    For the keys of any block: a one in the row of the key's row, three for -logsumexp, one where no
    key is, and a one in the row of the key's column.
    """
    key = np.arange(b.key_lanes)
    real = key < b.rows * b.width
    ones = np.zeros((b.row_terms + EXTRA + b.column_terms, b.key_lanes), np.float32)
    ones[(key // b.width)[real], key[real]] = 1
    ones[b.row_terms : b.row_terms + 3] = 1
    ones[b.row_terms + 3, ~real] = 1
    if b.tables:
        ones[(b.row_terms + EXTRA + key % b.width)[real], key[real]] = 1
    return ones


def starts_of_queries(b: Blocks) -> np.ndarray:
    """int32 [16, T tiles]: H-1-y eight times, W-1-x eight times; see `shift.gather_rows`."""
    query = np.arange(b.tiles * b.queries) % b.pixels
    rows, columns = b.height - 1 - query // b.width, b.width - 1 - query % b.width
    return np.repeat(np.stack([rows, columns]), SUBLANES, axis=0).astype(np.int32)


def stacked_tables(b: Blocks, rel_h: jax.Array, rel_w: jax.Array) -> jax.Array:
    """[2H-1, d], [2W-1, d] -> [sum of offsets, content], padded with zeros."""
    padded = [
        jnp.pad(table, ((0, rows - table.shape[0]), (0, b.content - b.depth)))
        for table, rows in zip((rel_h, rel_w), b.offsets, strict=True)
    ]
    return jnp.concatenate(padded, axis=0)


def split_tables(b: Blocks, stacked: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse of `stacked_tables`."""
    first = b.offsets[0]
    return (
        stacked[: 2 * b.height - 1, : b.depth],
        stacked[first : first + 2 * b.width - 1, : b.depth],
    )
