"""Memory of attention layers at the sizes of a detector: what lives between inputs and outputs.

Done naively, augmentation of 80 x 80 pixels holds 1.31 GB of logits for one image and layer. The
gate is twice what goes in and comes out, forward and backward, cotangents and gradients included.

The plain form of windows misses it where it holds the blocks of many rows with their halos, 4.4
times the map for keys, for values and for the gradients of both: of a whole image in maps of up to
64 x 64 pixels. Of other images it holds none.
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.attention.cases import of_layer, shape, size_of
from tests.tpu_compiler import needs_figures
from trainlib.planning.ledger import ledger_of
from vitattn.layers import AttentionStem, AugmentedConv, LocalAttention
from vitattn.layers.augmented import augmented_depths


def augmented(height, width, channels, dtype, heads=8, least=0):
    keys, values = augmented_depths(channels, 0.2, 0.1, heads, least)
    layer = AugmentedConv(
        *(channels, channels),
        num_heads=heads,
        key_depth=keys,
        value_depth=values,
        size=(height, width),
        dtype=dtype,
    )
    return layer, (height, width, channels)


def local(height, width, channels, dtype):
    layer = LocalAttention(channels, channels, num_heads=8, window=7, dtype=dtype)
    return layer, (height, width, channels)


def stem(height, width, channels, dtype):
    return AttentionStem(3, channels, dtype=dtype), (height, width, 3)


LAYERS = {
    "augmented_80": (augmented, 80, 80, 128),
    "augmented_40": (augmented, 40, 40, 256),
    "augmented_20": (augmented, 20, 20, 512),
    "augmented_80x128": (augmented, 80, 128, 128),
    "local_160": (local, 160, 160, 64),
    "local_80": (local, 80, 80, 128),
    "local_40": (local, 40, 40, 256),
    "local_20": (local, 20, 20, 512),
    "local_head_80": (local, 80, 80, 256),
    "stem_640": (stem, 640, 640, 64),
}
# Times what goes in and comes out of one image; measured 2.35, 5.41, 2.94 and 2.10.
MISSED = {"local_80": 2.5, "local_40": 6, "local_20": 3.2, "local_head_80": 2.5}


def program(name, batch, dtype):
    """Value and gradients of a layer, and the bytes of all that goes in and comes out."""
    make, *size = LAYERS[name]
    layer, map_shape = make(*size, dtype)
    made = of_layer(layer, shape(batch, *map_shape, dtype=dtype))
    outputs = jax.eval_shape(made.function, *made.shapes)
    return made, size_of(made.shapes) + size_of(outputs)


def quick_first():
    """A layer for every run; the others compile for a few seconds each."""
    for name in LAYERS:
        quick = name == "augmented_80"
        yield pytest.param(name, marks=pytest.mark.thorough if quick else pytest.mark.slow)


@pytest.mark.parametrize("name", quick_first())
def test_plain_tiles(name):
    made, moved = program(name, 1, jnp.float32)
    analysis: Any = jax.jit(made.function).lower(*made.shapes).compile().memory_analysis()
    assert analysis.temp_size_in_bytes <= MISSED.get(name, 2) * moved


@needs_figures
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize("name", LAYERS)
def test_kernels_of_a_tpu(name, dtype):
    made, moved = program(name, 8, dtype)
    assert ledger_of(made.function, *made.shapes, target="v5e-1").temporaries <= 2 * moved
