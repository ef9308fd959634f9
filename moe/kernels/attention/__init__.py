"""Attention of T5 on a TPU, without an array of all queries by all keys."""

from moe.kernels.attention.bias import relative_vector
from moe.kernels.attention.flash import flash_attention
from moe.kernels.attention.plan import fits

__all__ = ["fits", "flash_attention", "relative_vector"]
