"""Grouped products by the TPU's kernels, interpreted, beside a loop over the experts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.kernels.grouped import tiled
from moe.kernels.grouped_tiles import Tilings, tilings

DEPTH, COLUMNS, ROWS = 256, 384, 512
# Another for each product, sums over depth and over rows among them.
OWN = Tilings(forward=(128, 128, 384), inputs=(256, 384, 128), weights=(128, 256, 128))


def by_loop(x, weight, sizes):
    ends = np.cumsum(sizes)
    parts = [
        jnp.dot(x[a:b], w, preferred_element_type=jnp.float32)
        for a, b, w in zip(ends - sizes, ends, weight, strict=True)
    ]
    return jnp.concatenate(parts)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dtype", "sizes", "tiles"),
    [
        (jnp.float32, [70, 0, 33, 1, 300], OWN),
        (jnp.bfloat16, [70, 0, 33, 1, 300], OWN),
        (jnp.float32, [0, 0, 512, 0, 0], OWN),  # all to one
        (jnp.float32, [0, 0, 0, 0, 0], OWN),
        (jnp.bfloat16, [129, 127, 1, 0, 130], tilings(ROWS, DEPTH, COLUMNS, 5, 2, "v5e")),
    ],
)
def test_products_and_gradients_equal_a_loop_over_experts(dtype, sizes, tiles):
    """Rows after the last segment are no one's."""
    used = sum(sizes)
    draw = np.random.default_rng(0).normal
    x, dy = (jnp.asarray(draw(size=(ROWS, n)), dtype) for n in (DEPTH, COLUMNS))
    weight = jnp.asarray(draw(size=(len(sizes), DEPTH, COLUMNS)) / 16, dtype)
    counts = jnp.asarray(sizes, jnp.int32)

    @jax.jit
    def kernel(x, weight, dy):
        y, back = jax.vjp(lambda x, weight: tiled(x, weight, counts, tiles, True), x, weight)
        return y, *back(dy)

    y, dx, dw = kernel(x, weight, dy)
    wide = [value.astype(jnp.float32) for value in (x[:used], weight, dy[:used])]
    want, want_back = jax.vjp(lambda x, w: by_loop(x, w, sizes), *wide[:2])
    tolerance = {jnp.float32: 2e-5, jnp.bfloat16: 1e-2}[dtype]
    for got, expected in zip((y[:used], dx[:used], dw), (want, *want_back(wide[2])), strict=True):
        assert got.dtype == dtype
        scale = float(jnp.max(jnp.abs(expected), initial=1.0))
        np.testing.assert_allclose(
            got.astype(jnp.float32) / scale, expected / scale, rtol=tolerance, atol=tolerance
        )
