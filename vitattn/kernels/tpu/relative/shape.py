"""Sizes of the tiles of 2-D relative attention, and the constants that stand for positions.

Letters: H W map, P = HW pixels, L and K pixels filled up for lanes and for sublanes, d e depth of
keys and values, D and E rows that they take, A rows of a query with its terms, R of both tables.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vitattn.kernels.tpu.registers import LANES, PACKED, SUBLANES, filled

# All logits of a head are in VMEM, and in the code of the kernel; larger maps go by blocks of keys.
MOST_PIXELS = 1024
# What is added to the logit of a key that is not there; bfloat16 holds it.
ABSENT = -1e9


@dataclasses.dataclass(frozen=True)
class Shape:
    """A map and the depths of one head.

    Attributes:
      height: H.
      width: W.
      key_depth: d.
      value_depth: e.
      relative: whether logits have terms of rows and columns.
    """

    height: int
    width: int
    key_depth: int
    value_depth: int
    relative: bool

    @property
    def pixels(self) -> int:
        """P."""
        return self.height * self.width

    @property
    def lanes(self) -> int:
        """L, queries along lanes."""
        return filled(self.pixels, LANES)

    @property
    def keys(self) -> int:
        """K, keys along sublanes."""
        return filled(self.pixels, PACKED)

    @property
    def key_rows(self) -> int:
        """D."""
        return filled(self.key_depth, SUBLANES)

    @property
    def value_rows(self) -> int:
        """E: two rows more than values, which the sum of the softmax and delta ride in."""
        return filled(self.value_depth + 2, SUBLANES)

    @property
    def rows(self) -> int:
        """Of queries, keys and values of a head together."""
        return 2 * self.key_rows + self.value_rows

    @property
    def row_terms(self) -> int:
        """Row of the augmented queries where the H terms of the rows of the map begin: right after
        the depth, within a register if need be.
        """
        return self.key_depth

    @property
    def col_terms(self) -> int:
        """Where the W terms of its columns begin."""
        return self.row_terms + (self.height if self.relative else 0)

    @property
    def last(self) -> int:
        """Where those rows begin that have no gradients: -logsumexp in three parts, and 1 for keys
        that are not there.
        """
        return self.col_terms + (self.width if self.relative else 0)

    @property
    def differentiated(self) -> int:
        """Rows that the gradient of queries with their terms takes."""
        return filled(self.last, SUBLANES)

    @property
    def augmented(self) -> int:
        """A, all rows of a query with its terms: what the product of the logits is deep."""
        return filled(self.last + 4, PACKED)

    @property
    def row_offset(self) -> int:
        """Where the table of the 2H-1 offsets of rows begins: as far down in a register as its
        terms do among the queries.
        """
        return self.row_terms % SUBLANES

    @property
    def row_offsets(self) -> int:
        """Rows that hold that table."""
        return filled(self.row_offset + 2 * self.height - 1, SUBLANES)

    @property
    def col_offset(self) -> int:
        """The same for columns, counted from the end of the table of rows."""
        return self.col_terms % SUBLANES

    @property
    def col_offsets(self) -> int:
        """Rows that hold the table of columns."""
        return filled(self.col_offset + 2 * self.width - 1, SUBLANES)

    @property
    def offsets(self) -> int:
        """R, rows of both tables."""
        return filled(self.row_offsets + self.col_offsets, PACKED)

    def places(self) -> np.ndarray:
        """f32 [A, L]: what stands with the keys, so that the terms of a query meet theirs.

        Row Y of the H is 1 for keys in row Y of the map, the same for columns; then three rows of
        ones, and one that is `ABSENT` for lanes beyond the map. Rows of the depth are 0.
        """
        places = np.zeros((self.augmented, self.lanes), np.float32)
        pixel = np.arange(self.pixels)
        if self.relative:
            places[self.row_terms + pixel // self.width, pixel] = 1
            places[self.col_terms + pixel % self.width, pixel] = 1
        places[self.last : self.last + 3] = 1
        places[self.last + 3, self.pixels :] = ABSENT
        return places

    def shifts(self) -> np.ndarray:
        """int32 [16, L]: H-1-y of a query in row y, eight times, then W-1-x.

        A whole register each: a mask that is spread from one row costs several times as much.
        """
        pixel = np.arange(self.lanes) % self.pixels
        rows = self.height - 1 - pixel // self.width
        columns = self.width - 1 - pixel % self.width
        return np.repeat(np.stack([rows, columns]), SUBLANES, 0).astype(np.int32)
