"""Position encodings that attention layers share.

Dimension letters: H W map, C channels.
"""

from __future__ import annotations

import jax
import numpy as np


def table_init(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Normal of standard deviation width^-0.5, for a table [offsets, width]."""
    return jax.random.normal(key, shape, dtype) * shape[-1] ** -0.5


def sine_positions(height: int, width: int, channels: int) -> np.ndarray:
    """Sinusoids [H, W, C]: the first half of the channels tells the row, the rest the column."""

    def one_axis(size: int, depth: int) -> np.ndarray:
        rate = 10_000.0 ** (-2.0 * (np.arange(depth) // 2) / max(depth, 1))
        angle = np.arange(size)[:, None] * rate[None, :]
        return np.where(np.arange(depth) % 2 == 0, np.sin(angle), np.cos(angle))

    half = channels // 2
    rows = np.broadcast_to(one_axis(height, half)[:, None], (height, width, half))
    cols = np.broadcast_to(one_axis(width, channels - half)[None], (height, width, channels - half))
    return np.concatenate([rows, cols], -1).astype(np.float32)


def coordinates(height: int, width: int) -> np.ndarray:
    """Row and column of each pixel in [-1, 1], [H, W, 2] (CoordConv, arXiv 1807.03247)."""
    y, x = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    return np.stack(np.meshgrid(y, x, indexing="ij"), -1).astype(np.float32)
