"""Attention of a RetinaNet on images of 640 x 640 pixels, 8 images, 8 heads.

An augmented half has the depths that kappa 0.2 and upsilon 0.1 give without a least one: 3 channels
a head and values of 1 on conv3_x, which has 80 x 80 pixels. Layers of windows have maps of 160, 80,
40 and 20 pixels in the backbone, and 256 channels on the levels P3 to P7 in the heads. The stem has
all pixels of the image.

Floors of augmented halves: depths padded to the 128 lanes of the matrix unit, and seven products of
all pairs of pixels, as in `augmented`. Those of windows and of the stem as in `windowed`.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from benchmarks.attention.cases import Case, Program, of_layer, shape

BATCH, HEADS, WINDOW, IMAGE = 8, 8, 7, 640


def half(pixels: int, channels: int, least: int = 0, heads: int = HEADS) -> Program:
    """The augmented half of a 3x3 convolution of so many channels."""
    from vitattn.layers import AugmentedConv
    from vitattn.layers.augmented import augmented_depths

    keys, values = augmented_depths(channels, 0.2, 0.1, heads, least)
    layer = AugmentedConv(
        *(channels, values),
        num_heads=heads,
        key_depth=keys,
        value_depth=values,
        size=pixels,
        dtype=jnp.bfloat16,
    )
    return of_layer(layer, shape(BATCH, pixels, pixels, channels))


def layer(pixels: int, channels: int) -> Program:
    """`LocalAttention` on maps of pixels x pixels."""
    from vitattn.layers import LocalAttention

    module = LocalAttention(channels, channels, num_heads=HEADS, window=WINDOW, dtype=jnp.bfloat16)
    return of_layer(module, shape(BATCH, pixels, pixels, channels))


def stem() -> Program:
    """`AttentionStem` on images."""
    from vitattn.layers import AttentionStem

    module = AttentionStem(3, 64, dtype=jnp.bfloat16)
    return of_layer(module, shape(BATCH, IMAGE, IMAGE, 3))


def _half_case(pixels: int, channels: int, floor: float, name: str = "", **sizes: int) -> Case:
    return Case(
        f"detection/half_{pixels}{name}",
        f"{pixels} px, C {channels}",
        functools.partial(half, pixels, channels, **sizes),
        floor={"v5e-1": floor},
    )


def _layer_case(pixels: int, channels: int, name: str = "layer") -> Case:
    # 1.67 ms where 160 x 160 pixels have 64 channels: operations are as many as pixels x channels.
    floor = 1.67 * pixels**2 * channels / (160**2 * 64)
    return Case(
        f"detection/{name}_{pixels}",
        f"{pixels} px, C {channels}",
        functools.partial(layer, pixels, channels),
        floor={"v5e-1": floor},
    )


CASES = [
    _half_case(80, 128, 14.1),
    _half_case(40, 256, 0.90),
    _half_case(20, 512, 0.09),
    _half_case(80, 128, 3.7, "_two_heads", least=20, heads=2),
    _layer_case(160, 64),
    _layer_case(80, 128),
    _layer_case(40, 256),
    _layer_case(20, 512),
    *(_layer_case(pixels, 256, "head") for pixels in (80, 40, 20, 10, 5)),
    Case("detection/stem", f"{IMAGE} px", stem, floor={}),
]
