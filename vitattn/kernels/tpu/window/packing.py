"""How maps lie in memory for windowed attention: pixels of a row on lanes, heads on sublanes.

Dimension letters: B images, N heads, H W map, c channels of a head, T tiles, S sublanes, L lanes, p
maps side by side, R = window // 2.

    packed[t, y, c, s, i (W + R) + x] = map[b, y, x, n, c]    with b N + n = (t p + i) S + s

    lanes       0 ........ W-1 | R zeros | W+R ..... 2W+R-1 | R zeros | ...  | zeros to L
    sublane 0   group 0, row y           | group S, row y             |
    sublane 1   group 1, row y           | group S + 1, row y         |
    ...

A neighbour in another row is another index of an outer dimension, which costs nothing. One in the
same row is a rotation of the lanes; between the maps lie R zeros, so that a rotation brings the
zeros outside the map or those of the neighbouring map's border, and those at the end serve the
first map too, around the corner. A product over the channels of a head adds whole registers.
Eight sublanes are the heads of one image where there are eight: a projection [C, c N] of rows of
pixels then writes this layout by itself. Where maps are wide, several lane tiles are one row.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.registers import LANES, SUBLANES

Array = jax.Array

_MOST_TILES = 8  # lane tiles of a row, where one map needs fewer


@dataclasses.dataclass(frozen=True)
class Packing:
    """Sizes of packed maps [T, H, c, S, L].

    Attributes:
      batch: B.
      heads: N.
      height: H.
      width: W.
      window: odd side of the window, which decides how many zeros lie between maps.
      blocks: parts of equal size, each of which begins a tile; they share the number of lanes.
    """

    batch: int
    heads: int
    height: int
    width: int
    window: int
    blocks: int = 1

    @property
    def reach(self) -> int:
        """R, pixels that a query sees to each side."""
        return self.window // 2

    @property
    def pitch(self) -> int:
        """W + R, lanes from one map to the next."""
        return self.width + self.reach

    @functools.cached_property
    def lanes(self) -> int:
        """L, a multiple of 128: as many lane tiles as leave the fewest unused in all, or one where
        that holds several maps: VMEM of a kernel grows with L.
        """
        groups = -(-self.batch * self.heads // (self.blocks * SUBLANES))

        def total(lanes: int) -> int:
            return -(-groups // (lanes // self.pitch)) * lanes

        fewest = -(-self.pitch // LANES)
        most = 1 if 2 * self.pitch <= LANES else max(fewest, _MOST_TILES)
        sizes = (n * LANES for n in range(fewest, most + 1))
        return min(sizes, key=lambda lanes: (total(lanes), lanes))

    @property
    def across(self) -> int:
        """p, maps side by side."""
        return self.lanes // self.pitch

    @property
    def tiles(self) -> int:
        """T."""
        return -(-self.batch * self.heads // (SUBLANES * self.across))

    def shape(self, channels: int) -> tuple[int, int, int, int, int]:
        """[T, H, c, S, L]."""
        return self.tiles, self.height, channels, SUBLANES, self.lanes

    def valid(self) -> Array:
        """bool [L], the lanes that hold pixels."""
        lane = jnp.arange(self.lanes)
        return (lane % self.pitch < self.width) & (lane < self.across * self.pitch)

    def pack(self, maps: Array) -> Array:
        """[B, H, W, N, c] -> [T, H, c, S, L], padding with zeros; passes over HBM, see `unpack`."""
        channels = maps.shape[-1]
        x = maps.transpose(0, 3, 1, 2, 4).reshape(-1, self.height, self.width, channels)
        missing = self.tiles * self.across * SUBLANES - x.shape[0]
        x = jnp.pad(x, ((0, missing), (0, 0), (0, self.pitch - self.width), (0, 0)))
        x = x.reshape(self.tiles, self.across, SUBLANES, *x.shape[1:])
        x = x.transpose(0, 3, 5, 2, 1, 4)  # [T, H, c, S, p, W + R]
        x = x.reshape(*x.shape[:4], self.across * self.pitch)
        return jnp.pad(x, ((0, 0),) * 4 + ((0, self.lanes - x.shape[-1]),))

    def unpack(self, packed: Array) -> Array:
        """[T, H, c, S, L] -> [B, H, W, N, c].

        Without a projection that writes or reads the packed layout by itself: it costs more than
        the attention.
        """
        channels = packed.shape[2]
        x = packed[..., : self.across * self.pitch]
        x = x.reshape(*x.shape[:4], self.across, self.pitch)[..., : self.width]
        x = x.transpose(0, 4, 3, 1, 5, 2)  # [T, p, S, H, W, c]
        x = x.reshape(-1, *x.shape[3:])[: self.batch * self.heads]
        x = x.reshape(self.batch, self.heads, self.height, self.width, channels)
        return x.transpose(0, 2, 3, 1, 4)
