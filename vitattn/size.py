"""The size of an image: one number of pixels for a square, or (height, width)."""

from __future__ import annotations

from collections.abc import Sequence

from trainlib.errors import ConfigError, shown

Size = int | tuple[int, int]


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def check(size: int | Sequence[int]) -> None:
    """Refuses what is no size.

    Raises:
      ConfigError: it is not one or two whole numbers, each at least 1.
    """
    numbers = (size,) if isinstance(size, int) else tuple(size)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers)
    if not whole or len(numbers) != (1 if isinstance(size, int) else 2):
        raise ConfigError(
            f"model.image_size={shown(size)} is no size: give the pixels of a square image, such "
            "as 224, or its height and width, such as 192,256, each at least 1."
        )
