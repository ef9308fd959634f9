"""Registers of a TPU, and sizes in whole ones."""

LANES, SUBLANES, PACKED = 128, 8, 16  # of a register; sublanes of float32 and of bfloat16


def filled(size: int, unit: int) -> int:
    """The least multiple of `unit` that is at least `size`."""
    return -(-size // unit) * unit
