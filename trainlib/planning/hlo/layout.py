"""Arrays as the optimised HLO writes them: `bf16[64,56,56,256]{3,0,2,1:T(8,128)(2,1)S(1)}`.

What an array takes in memory is not its elements: the dimensions that lie innermost are rounded up
to tiles, `T(8,128)`, whose elements may be packed by further tiles, `(2,1)`. A [.., 64] array of
bfloat16 takes twice its bytes on 128 lanes.

Memory spaces, `S(n)`, as libtpu numbers them: none is HBM, 1 the vector memory of the core (VMEM),
2 flags of semaphores, 3 the memory that the two cores of a v4 share (CMEM), 5 the memory of the
host, 6 the scalar memory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

HBM, VMEM, CMEM, HOST = 0, 1, 3, 5
ON_CHIP = (VMEM, CMEM)

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_TILES = re.compile(r"T((?:\([\d,*]*\))+)")
_TILE = re.compile(r"\(([\d,*]*)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_ELEMENT = re.compile(r"E\((\d+)\)")


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """One array.

    Attributes:
      kind: element type, as HLO writes it: bf16, f32, pred.
      shape: sizes, the bound of a dimension whose size is not known.
      order: dimensions from the innermost to the outermost.
      tiles: sizes of tiles, the outermost tile first.
      space: memory that it lies in; `HBM` where the text says nothing.
      bits: of an element in memory.
    """

    kind: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    tiles: tuple[tuple[int, ...], ...]
    space: int
    bits: int

    @property
    def elements(self) -> int:
        """Without padding."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Without padding."""
        return self.elements * self.bits // 8

    @property
    def padded_bytes(self) -> int:
        """What it takes in memory, in whole tiles."""
        sizes = [self.shape[axis] for axis in reversed(self.order)]
        for tile in self.tiles:
            sizes = _tiled(sizes, tile)
        return math.prod(sizes) * self.bits // 8


def _tiled(sizes: list[int], tile: tuple[int, ...]) -> list[int]:
    """Sizes from the outermost, with the inner ones cut into tiles: counts of tiles, then a tile.

    A scalar is a tile too, and an array of fewer dimensions than its tile has outer ones of 1.
    """
    missing = len(tile) - len(sizes)
    sizes = [1] * missing + sizes
    outer, inner = sizes[: len(sizes) - len(tile)], sizes[len(sizes) - len(tile) :]
    return [*outer, *(-(-size // side) for size, side in zip(inner, tile, strict=True)), *tile]


def element_bits(kind: str) -> int:
    """Bits of an element type."""
    if kind in _BITS:
        return _BITS[kind]
    digits = re.search(r"\d+", kind)
    return int(digits[0]) if digits else 8


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


@functools.lru_cache(maxsize=2**14)
def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, `f32[8,128]{1,0}` or a tuple of any depth, in order."""
    found = []
    for kind, shape, layout in _ARRAY.findall(text):
        if kind == "token":
            continue
        order, _, rest = layout.partition(":")
        sizes = _numbers(shape)
        listed = _numbers(order)
        tiles, space, bits = _TILES.search(rest), _SPACE.search(rest), _ELEMENT.search(rest)
        found.append(
            Array(
                kind=kind,
                shape=sizes,
                order=listed if len(listed) == len(sizes) else tuple(range(len(sizes)))[::-1],
                tiles=tuple(_numbers(t.replace("*", "1")) for t in _TILE.findall(tiles[1]))
                if tiles
                else (),
                space=int(space[1]) if space else HBM,
                bits=int(bits[1]) if bits else element_bits(kind),
            )
        )
    return tuple(found)
