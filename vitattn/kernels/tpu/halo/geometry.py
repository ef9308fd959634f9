"""Sizes of blocks, squares of keys and tiles, and the constant arrays that follow from them.

Letters: H W map, N heads, d depth of a head as the kernel has it, b block, h halo, M = b + 2h keys
of a block along an axis, R entries of a relative table, L lanes of logits.

Logits are [keys, L]. The lanes are the queries of a block, for several heads beside each other
where they fit: `slots` parts of `queries` lanes. Depth of the product is one tile of 128: one half
holds 64 channels of the map, the other the row and column terms of the queries against one-hot
rows and columns of the keys, which so cost no operation on logits.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from vitattn.kernels.tpu.registers import LANES, filled

HALF = LANES // 2
# Products of one turn of the loop; the code of a kernel grows with them.
_ABREAST = 16


@dataclasses.dataclass(frozen=True)
class Axis:
    """How rows or columns of a map are cut.

    Attributes:
      size: H or W.
      block: b.
      halo: h.
    """

    size: int
    block: int
    halo: int

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block)

    @property
    def keys(self) -> int:
        """M."""
        return self.block + 2 * self.halo

    @property
    def offsets(self) -> int:
        """Positions of a key relative to a query: key - query + b - 1 of their places."""
        return self.block + self.keys - 1

    @property
    def table_rows(self) -> int:
        return filled(self.offsets, 8)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """All sizes of the two kernels.

    Attributes:
      rows: axis of H.
      cols: axis of W.
      heads: N, a multiple of those of a tile of 128 channels if there is more than one such tile.
      depth: d, a power of two from 8 to 64.
      mask_border: whether keys outside the map are left out of the softmax.
    """

    rows: Axis
    cols: Axis
    heads: int
    depth: int
    mask_border: bool

    @property
    def block_cols(self) -> int:
        """Columns of a block as it lies in memory."""
        return filled(self.cols.block, 8)

    @property
    def key_rows(self) -> int:
        """Rows of a square, in the one-hot depth."""
        return filled(self.rows.keys, 8)

    @property
    def key_cols(self) -> int:
        """Columns of a square as it lies in memory; those beyond M are masked."""
        narrow = filled(self.cols.keys, 8)
        return narrow if self.rows.keys * narrow % 16 == 0 else filled(narrow, 16)

    @property
    def keys(self) -> int:
        """Keys of a square, with those that are masked."""
        return self.rows.keys * self.key_cols

    @property
    def hot(self) -> int:
        """Depth of the one-hot rows and columns."""
        return filled(self.key_rows + self.key_cols, 16)

    @property
    def entries(self) -> int:
        """R of both tables."""
        return filled(self.rows.table_rows + self.cols.table_rows, 16)

    @property
    def queries(self) -> int:
        """Lanes that the queries of a block take."""
        needed = self.rows.block * self.block_cols
        if needed > LANES:
            return filled(needed, LANES)
        return 1 << (needed - 1).bit_length()

    @property
    def lanes(self) -> int:
        """L."""
        return max(LANES, self.queries)

    @property
    def slots(self) -> int:
        return self.lanes // self.queries

    @property
    def together(self) -> int:
        """Heads of one product, beside each other on the lanes."""
        return min(self.slots, HALF // self.depth)

    @property
    def pass_depth(self) -> int:
        """Channels of the heads of one product."""
        return self.together * self.depth

    @property
    def channels(self) -> int:
        """Of the map, that one step of the grid computes on."""
        return min(LANES, self.heads * self.depth)

    @property
    def groups(self) -> int:
        """Steps of the grid for one image."""
        return self.heads * self.depth // self.channels

    @property
    def passes(self) -> tuple[int, ...]:
        """First channel of each product of a block."""
        return tuple(range(0, self.channels, self.pass_depth))

    @property
    def abreast(self) -> int:
        """Blocks that one turn of the loop computes: products of one wait while others run."""
        most = max(1, _ABREAST // len(self.passes))

        def cost(count: int) -> float:
            # The last turn may have blocks that nobody needs; alone, a block takes longer.
            return filled(self.cols.blocks, count) * (1 + 0.25 / count)

        return min(range(1, most + 1), key=cost)

    @property
    def computed(self) -> int:
        """Blocks of a row of them, with those that only fill a turn."""
        return filled(self.cols.blocks, self.abreast)

    @property
    def halves(self) -> int:
        return -(-self.channels // HALF)

    @property
    def first_col(self) -> int:
        """Where the map begins in a padded row: aligned, with room for the halo before it."""
        return filled(self.cols.halo, 8)

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of a padded image in VMEM."""
        rows = self.rows.blocks * self.rows.block + 2 * self.rows.halo
        last = self.first_col + (self.cols.blocks - 1) * self.cols.block
        ends = (last - self.cols.halo + self.key_cols, last + self.block_cols)
        ends += (self.first_col + self.cols.size,)
        return rows, filled(max(ends), 8)

    def shifts(self) -> np.ndarray:
        """i32 [16, L]: b - 1 less the row of a query in the first eight rows, then of columns."""
        at = np.arange(self.lanes) % self.queries
        row, col = at // self.block_cols, at % self.block_cols
        moves = [
            np.clip(axis.block - 1 - place, 0, axis.block - 1)
            for axis, place in ((self.rows, row), (self.cols, col))
        ]
        return np.repeat(np.stack(moves), 8, 0).astype(np.int32)

    def one_hot(self) -> np.ndarray:
        """[hot, keys]: which keys lie in a row, then in a column of the square."""
        key = np.arange(self.keys)
        hot = np.zeros((self.hot, self.keys), np.float32)
        hot[key // self.key_cols, key] = 1
        hot[self.key_rows + key % self.key_cols, key] = 1
        return hot

    def one_hot_halves(self) -> np.ndarray:
        """[halves, keys, 128]: the same beside the channels of either half of a tile."""
        out = np.zeros((self.halves, self.keys, LANES), np.float32)
        for half in range(self.halves):
            first = HALF * (1 - half)
            out[half, :, first : first + self.hot] = self.one_hot().T
        return out

    def vmem(self, item: int, *, arrays: int, images: int, staged: int) -> int:
        """Bytes of memory of a step, about.

        Args:
          item: bytes of a number of the operands.
          arrays: operands and results, each in two buffers.
          images: padded float32 images.
          staged: arrays of the squares of a row of blocks.
        """
        lines = self.rows.size * filled(self.cols.size, 16)
        rows, cols = self.padded
        square = max(self.keys, self.queries) * self.computed
        tiles = 24 * self.keys * self.lanes  # of logits: registers that are put aside
        total = 2 * arrays * lines * item + images * rows * cols * 4 + staged * square * 4
        return LANES * total + 4 * tiles


@functools.cache
def depth_of(depth: int) -> int:
    """Channels that the kernels give a head of `depth`."""
    return max(8, 1 << (depth - 1).bit_length())


def constants(geometry: Geometry, dtype: jax.typing.DTypeLike) -> tuple[np.ndarray, ...]:
    """Shifts, and one-hot keys in both orientations."""
    hot = geometry.one_hot_halves().astype(dtype), geometry.one_hot().astype(dtype)
    return geometry.shifts(), *hot
