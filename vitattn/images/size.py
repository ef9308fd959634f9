"""The size of an image or a map: one number of pixels for a square, or (height, width). A box in it
is (left, top, right, bottom)."""

from __future__ import annotations

Size = int | tuple[int, int]
Box = tuple[float, float, float, float]


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def strided(size: int, stride: int) -> int:
    """Rows (or columns) of a map after a stride, as symmetric padding leaves them."""
    return -(-size // stride)
