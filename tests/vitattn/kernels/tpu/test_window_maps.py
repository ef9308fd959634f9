"""Projections into the packed layout and out of it, interpreted, against plain products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.sharding.kernels import use_kernels
from vitattn.kernels.local import local_attention
from vitattn.kernels.tpu.window.packing import Packing
from vitattn.kernels.tpu.window.projection import (
    pack,
    packing_of,
    project_into,
    unpack,
    weights_of,
)

SIZES = [
    # batch, height, width, heads, depth, channels
    (3, 5, 9, 8, 4, 12),  # one tile that the images do not fill
    (8, 2, 14, 16, 2, 130),  # rows of all images, two blocks of heads, two parts of channels
    (16, 3, 5, 3, 5, 7),  # heads that do not fill a block
    (2, 2, 16, 8, 4, 5),  # two tiles
]


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.sample(1)
@pytest.mark.parametrize("sizes", SIZES)
def test_into_the_packed_layout_and_out_again_is_the_product(sizes):
    batch, height, width, heads, depth, channels = sizes
    packing = packing_of(batch, heads, height, width, 7)
    maps = (batch, height, width)
    x, kernel, g = arrays((*maps, channels), (channels, heads * depth), (*maps, heads * depth))

    def through(x, kernel):
        packed: tuple[jax.Array, ...] = project_into(x, (weights_of(kernel, heads),), packing, True)
        return unpack(packed[0], heads, batch, packing, True)

    actual, pull = jax.vjp(through, x, kernel)
    expected, plain_pull = jax.vjp(jnp.matmul, x, kernel)
    for a, b in zip((actual, *pull(g)), (expected, *plain_pull(g)), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.thorough
@pytest.mark.parametrize("batch", [3, 8])
def test_packing_is_that_of_the_formula_and_unpacking_its_inverse(batch):
    height, width, heads, depth = 2, 9, 8, 3
    (x,) = arrays((batch, height, width, heads, depth))
    packing, flat = packing_of(batch, heads, height, width, 5), x.reshape(*x.shape[:3], -1)
    packed = pack(flat, heads, packing, True)
    plain = Packing(batch, heads, height, width, 5).pack(x)
    np.testing.assert_array_equal(np.asarray(packed), plain)
    np.testing.assert_array_equal(np.asarray(unpack(packed, heads, batch, packing, True)), flat)
    _, pull = jax.vjp(lambda x: pack(x, heads, packing, True), flat)
    np.testing.assert_array_equal(pull(plain)[0], flat)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [2, 9])
def test_local_attention_of_any_number_of_heads(heads):
    q, k, v, row, col, g = arrays(
        *[(2, 4, 5, heads, size) for size in (6, 6, 4)], (3, 3), (3, 3), (2, 4, 5, heads, 4)
    )
    fn = functools.partial(local_attention, window=3, mask_border=True)

    def run(kernels):
        def both(*args):
            out, pull = jax.vjp(fn, *args)
            return out, *pull(g)

        with use_kernels(kernels):
            return jax.jit(both)(q, k, v, row, col)

    for a, b in zip(run("interpret"), run("plain"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * jnp.abs(b).max().item())
