"""Winograd's form of a 3x3 convolution against the plain sum in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitattn.kernels.plain import winograd


def direct(x, kernel):
    """y[b, i, j] = sum over taps of x[b, i + a - 1, j + c - 1] kernel[a, c]."""
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [(a, c) for a in range(3) for c in range(3)]
    return np.sum([x[:, a : a + height, c : c + width] @ kernel[a, c] for a, c in taps], 0)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(2, 6, 8), (3, 5, 7), (1, 1, 4), (1, 2, 1)], ids=str)
def test_values_and_gradients_equal_the_plain_sum(shape):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(*shape, 5)), rng.normal(size=(3, 3, 5, 6))
    y = direct(x, kernel)
    g = rng.normal(size=y.shape)
    small = [jnp.asarray(a, jnp.float32) for a in (x, kernel, g)]
    np.testing.assert_allclose(winograd.convolve(*small[:2]), y, atol=3e-6 * np.abs(y).max())

    # Bilinear: <g, direct(x, kernel)> gives both gradients, for whatever x and kernel.
    dx, dw = winograd.input_gradient(small[2], small[1]), winograd.kernel_gradient(*small[::2])
    assert (dx.dtype, dx.shape, dw.shape) == (jnp.float32, x.shape, kernel.shape)
    for _ in range(3):
        tx, tw = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
        expected = [np.sum(g * direct(tx, kernel)), np.sum(g * direct(x, tw))]
        said = [np.sum(dx * tx), np.sum(dw * tw)]
        np.testing.assert_allclose(said, expected, rtol=1e-5, atol=1e-4)


def test_it_pays_where_layers_are_wide_and_pixels_many():
    assert winograd.pays((8, 8, 8, 256), 256)
    assert winograd.pays((8, 7, 7, 512), 512)
    assert not winograd.pays((8, 4, 4, 512), 512)  # 32 tiles
    assert not winograd.pays((8, 56, 56, 64), 64)
    assert not winograd.pays((1, 1, 4000, 512), 512)


def test_multiplications_are_16_for_4_values():
    """Products of the compiled program, of all tiles: of 36 x 32 x 48 per tile, 16 are left."""
    shapes = (2, 6, 8, 32), (3, 3, 32, 48)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(winograd.convolve).lower(*args).as_text()
    assert text.count("stablehlo.dot_general") == 1
    assert "tensor<16x24x32xf32>, tensor<16x32x48xf32>) -> tensor<16x24x48xf32>" in text
