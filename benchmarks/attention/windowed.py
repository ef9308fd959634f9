"""Layers of stand-alone self-attention, projections in; batch 32, window 7, 8 heads.

Floors: 49 x depth multiply-adds a pixel and head, twice in the forward pass and about four times
that in all, on the four slots of the vector unit.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from benchmarks.attention.cases import Case, Program, of_layer, shape

BATCH, HEADS, WINDOW = 32, 8, 7


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


CASES = [
    _case(14, 256, 0.1, 0.35, 0.2),
    _case(28, 128, 0.2, 0.8, 0.5),
    _case(56, 64, 0.4, 2.0, 1.2),
]
