"""2-D relative attention and the augmented halves around it; batch 32, 8 heads, keys of depth 20.

Letters: B batch, N heads, P pixels, C channels, d e key and value depth of a head.

A half is all of an augmented convolution but its convolution: three 1x1 projections, attention, the
projection of the result, and the gradients of all of it.

Floors of the cores: depths padded to the 128 lanes of the matrix unit, seven products of P x P.
Those of the halves add the projections: once in the forward pass, again in the backward pass, and
two products more for the gradients of maps and weights, 1,760 and 3,250 cycles an image.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from benchmarks.attention.cases import Case, Program, of_layer, shape, with_gradients

BATCH, HEADS, KEY_DEPTH = 32, 8, 20


def core(pixels: int, depth: int) -> Program:
    """`relative_attention_2d` on maps of pixels x pixels with values of `depth`."""
    from vitattn.layers import relative_attention_2d

    maps = (BATCH, pixels, pixels, HEADS)
    tables = [shape(2 * pixels - 1, KEY_DEPTH, dtype=jnp.float32)] * 2
    keys = [shape(*maps, KEY_DEPTH)] * 2
    return with_gradients(relative_attention_2d, *keys, shape(*maps, depth), *tables)


def half(pixels: int, channels: int, depth: int) -> Program:
    """An augmented layer that has nothing but its attention, values of `depth` a head."""
    from vitattn.layers import AugmentedConv

    width = HEADS * depth
    layer = AugmentedConv(
        *(channels, width),
        num_heads=HEADS,
        key_depth=HEADS * KEY_DEPTH,
        value_depth=width,
        size=pixels,
        dtype=jnp.bfloat16,
    )
    return of_layer(layer, shape(BATCH, pixels, pixels, channels))


CASES = [
    Case(
        "augmented/core_14",
        "operands [B, H, W, N, d], 14 px, values 6",
        functools.partial(core, 14, 6),
        floor={"v5e-1": 0.097},
        bytes_goal=2.0,
    ),
    Case(
        "augmented/core_28",
        "operands [B, H, W, N, d], 28 px, values 3",
        functools.partial(core, 28, 3),
        floor={"v5e-1": 1.19},
        bytes_goal=2.0,
    ),
    Case(
        "augmented/half_14",
        "14 px, C 256, values 6",
        functools.partial(half, 14, 256, 6),
        floor={"v5e-1": 0.135},
        goal=0.40,
        aim=0.30,
        bytes_goal=2.0,
    ),
    Case(
        "augmented/half_28",
        "28 px, C 128, values 3",
        functools.partial(half, 28, 128, 3),
        floor={"v5e-1": 1.26},
        goal=1.9,
        aim=1.6,
        bytes_goal=2.0,
    ),
]
