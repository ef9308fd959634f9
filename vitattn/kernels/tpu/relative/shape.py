"""Sizes of the tiles of 2-D relative attention, and the constants that stand for positions.

Letters: H W map, P = HW pixels, L and K pixels filled up for lanes and for sublanes, d e depth of
keys and values, D and E rows that they take.
"""

from __future__ import annotations

import dataclasses

import numpy as np

LANES, SUBLANES, PACKED = 128, 8, 16  # of a register; sublanes of float32 and of bfloat16
# What is added to the logit of a key that is not there; bfloat16 holds it.
ABSENT = -1e9


def filled(size: int, unit: int) -> int:
    """The least multiple of `unit` that is at least `size`."""
    return -(-size // unit) * unit


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
        """Rows that hold the H terms of the rows of a map."""
        return filled(self.height, SUBLANES) if self.relative else 0

    @property
    def col_terms(self) -> int:
        """The same for its W columns."""
        return filled(self.width, SUBLANES) if self.relative else 0

    @property
    def extra(self) -> int:
        """Rows after them: -logsumexp in three parts, and 1 for keys that are not there."""
        return filled(self.augmented_end + 4, PACKED) - self.augmented_end

    @property
    def augmented_end(self) -> int:
        """Where the rows of the query and of its terms end."""
        return self.key_rows + self.row_terms + self.col_terms

    @property
    def augmented(self) -> int:
        """All rows of a query with its terms: what the product of the logits is deep."""
        return self.augmented_end + self.extra

    @property
    def row_offsets(self) -> int:
        """Rows that hold the table of the 2H-1 offsets of rows."""
        return filled(2 * self.height - 1, SUBLANES)

    @property
    def col_offsets(self) -> int:
        """The same for columns."""
        return filled(2 * self.width - 1, SUBLANES)

    @property
    def offsets(self) -> int:
        """Rows of both tables."""
        return filled(self.row_offsets + self.col_offsets, PACKED)

    def places(self) -> np.ndarray:
        """f32 [augmented - D, L]: what is below the keys, so that the terms of a query meet theirs.

        Row Y of the first H is 1 for keys in row Y of the map, the same for columns; then three
        rows of ones, and one that is `ABSENT` for lanes beyond the map.
        """
        places = np.zeros((self.augmented - self.key_rows, self.lanes), np.float32)
        pixel = np.arange(self.pixels)
        if self.relative:
            places[pixel // self.width, pixel] = 1
            places[self.row_terms + pixel % self.width, pixel] = 1
        last = places[self.row_terms + self.col_terms :]
        last[:3] = 1
        last[3, self.pixels :] = ABSENT
        return places

    def shifts(self) -> np.ndarray:
        """int32 [16, L]: H-1-y of a query in row y, eight times, then W-1-x.

        A whole register each: a mask that is spread from one row costs several times as much.
        """
        pixel = np.arange(self.lanes) % self.pixels
        rows = self.height - 1 - pixel // self.width
        columns = self.width - 1 - pixel % self.width
        return np.repeat(np.stack([rows, columns]), SUBLANES, 0).astype(np.int32)
