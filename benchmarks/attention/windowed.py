"""Layers of local and halo attention, projections in; batch 32, window 7, halo 3, 8 heads.

Floors of local attention: 49 x depth multiply-adds a pixel and head, twice in the forward pass and
about four times that in all, on the four slots of the vector unit. Floors of halo attention: the
matrix unit's products of 16 rows in the kernels, 16 cycles each on four units.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from benchmarks.attention.cases import Case, Program, of_layer, shape

BATCH, HEADS, WINDOW, HALO = 32, 8, 7, 3


def layer(pixels: int, channels: int) -> Program:
    """`LocalAttention` on maps of pixels x pixels."""
    from vitattn.layers import LocalAttention

    module = LocalAttention(channels, channels, num_heads=HEADS, window=WINDOW, dtype=jnp.bfloat16)
    return of_layer(module, shape(BATCH, pixels, pixels, channels))


def _case(pixels: int, channels: int, floor: float, goal: float, aim: float) -> Case:
    return Case(
        f"windowed/layer_{pixels}",
        f"{pixels} px, C {channels}",
        functools.partial(layer, pixels, channels),
        floor={"v5e-1": floor},
        goal=goal,
        aim=aim,
        bytes_goal=2.0,
    )


def halo_layer(pixels: int, channels: int, block: int) -> Program:
    """`HaloAttention` on maps of pixels x pixels."""
    from vitattn.layers import HaloAttention

    sizes: dict[str, Any] = {"num_heads": HEADS, "block": block, "halo": HALO}
    module = HaloAttention(channels, channels, **sizes, dtype=jnp.bfloat16)
    return of_layer(module, shape(BATCH, pixels, pixels, channels))


def _halo_case(pixels: int, channels: int, block: int, floor: float) -> Case:
    return Case(
        f"windowed/halo_{pixels}",
        f"{pixels} px, C {channels}, blocks of {block}",
        functools.partial(halo_layer, pixels, channels, block),
        floor={"v5e-1": floor},
    )


CASES = [
    _case(14, 256, 0.1, 0.35, 0.2),
    _case(28, 128, 0.2, 0.8, 0.5),
    _case(56, 64, 0.4, 2.0, 1.2),
    _halo_case(14, 256, 7, 0.12),
    _halo_case(28, 128, 7, 0.38),
    _halo_case(56, 64, 8, 1.07),
]
