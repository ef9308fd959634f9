"""FLOPs of traced programs whose bodies run more than once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from trainlib.model.flops import flops


def test_a_kernel_counts_as_often_as_its_grid_has_steps():
    def kernel(a, b, out):
        out[...] = jnp.dot(a[...], b[...])

    def product(a, b):
        return pl.pallas_call(
            kernel,
            grid=(4, 2),
            in_specs=[
                pl.BlockSpec((128, 256), lambda i, j: (i, 0)),
                pl.BlockSpec((256, 128), lambda i, j: (0, j)),
            ],
            out_specs=pl.BlockSpec((128, 128), lambda i, j: (i, j)),
            out_shape=jax.ShapeDtypeStruct((512, 256), jnp.float32),
        )(a, b)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((512, 256), (256, 256))]
    assert flops(product, *shapes) == flops(jnp.matmul, *shapes) == 2 * 512 * 256 * 256
