"""3x3 convolutions of stride 1 with 16 multiplications for 4 values instead of 36.

Letters: B batch, H W map, C input channels, F output channels, P tiles of 2 x 2 values of all maps,
k and l rows and columns of a tile of 4 x 4.

Winograd's F(2 x 2, 3 x 3) as Lavin and Gray use it (2015, arXiv 1509.09308): with the matrices
below,

    y = A^T ((B^T x B) * (G w G^T)) A        for each tile, summed over channels by 16 products
    dw = G^T ((B^T x B) * (A dy A^T)) G      summed over tiles by 16 products

and the gradient in x is the convolution of dy with the kernel turned round. The coefficients are 0,
1 and 1/2, so float32 loses about as much as in the sum that it replaces: values and gradients are
within 1e-6 of the largest, of a sum in float64, and gradients of kernels within 1e-5.

For programs on CPU, where it takes 0.55-0.75 of the time of XLA's convolution; a TPU has matrix
units that convolve.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

BT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
AT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
# The transforms read and write 16 values where 20 multiply-adds are saved for each pair of
# channels: narrow layers and few pixels cost more than they save.
MOST_TRANSFORMED = 1 / 40
# Numbers of one image. What is transformed is four times as large for a moment: the maps of a
# detector, which fill the memory of a laptop as it is, are left to XLA.
LARGEST_MAP = 2**19

# A transform is made once, whatever XLA would rather repeat in the loops that read it.
_made = jax.lax.optimization_barrier


def pays(shape: tuple[int, ...], features: int) -> bool:
    """Whether a float32 map [B, H, W, C] is convolved to F channels in less time by this form; in a
    program that is exported for any B, whether one image is.
    """
    batch, height, width, channels = shape
    tiles = (batch if isinstance(batch, int) else 1) * _tiles(height) * _tiles(width)
    return (
        min(height, width) > 1
        and height * width * channels <= LARGEST_MAP
        and 1 / channels + 1 / features + 1 / max(1, tiles) <= MOST_TRANSFORMED
    )


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def _tiles(n: int) -> int:
    return -(-n // 2)


def _of_kernel(kernel: jax.Array) -> jax.Array:
    """G w G^T: [3, 3, C, F] -> [16, C, F]."""
    weights = np.einsum("ka,lb->klab", G, G).reshape(16, 3, 3, 1, 1)
    return _made(_sum(weights[:, a, b] * kernel[a, b] for a in range(3) for b in range(3)))


def _of_map(x: jax.Array) -> jax.Array:
    """B^T x B of the tiles of 4 x 4 around those of 2 x 2: [B, H, W, C] -> [16, P, C]."""
    batch, height, width, channels = x.shape
    rows, cols = _tiles(height), _tiles(width)
    high = (2 * rows + 1 - height, 2 * cols + 1 - width)
    x = _made(jnp.pad(x, ((0, 0), (1, high[0]), (1, high[1]), (0, 0))))
    x = x.reshape(batch, rows + 1, 2, cols + 1, 2, channels)
    weights = np.einsum("ka,lb->klab", BT, BT).reshape(16, 4, 4, 1, 1, 1, 1)
    tiles = _sum(
        weights[:, a, b] * x[:, a // 2 : a // 2 + rows, a % 2, b // 2 : b // 2 + cols, b % 2]
        for a in range(4)
        for b in range(4)
    )
    return _made(tiles.reshape(16, -1, channels))


def _to_map(products: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A^T m A of each tile: [16, P, F] -> [B, H, W, F], for a map of `shape` [B, H, W, ..]."""
    batch, height, width = shape[:3]
    rows, cols, features = _tiles(height), _tiles(width), products.shape[-1]
    products = products.reshape(4, 4, batch, rows, 1, cols, 1, features)
    weights = np.einsum("ik,jl->klij", AT, AT).reshape(4, 4, 1, 1, 2, 1, 2, 1)
    y = _sum(weights[k, l] * products[k, l] for k in range(4) for l in range(4))
    return _made(y.reshape(batch, 2 * rows, 2 * cols, features)[:, :height, :width])


def _of_gradient(g: jax.Array) -> jax.Array:
    """A dy A^T: [B, H, W, F] -> [16, P, F]."""
    batch, height, width, features = g.shape
    rows, cols = _tiles(height), _tiles(width)
    g = jnp.pad(g, ((0, 0), (0, 2 * rows - height), (0, 2 * cols - width), (0, 0)))
    g = g.reshape(batch, rows, 2, cols, 2, features)
    weights = np.einsum("ik,jl->klij", AT, AT).reshape(16, 2, 2, 1, 1, 1, 1)
    tiles = _sum(weights[:, i, j] * g[:, :, i, :, j] for i in range(2) for j in range(2))
    return _made(tiles.reshape(16, -1, features))


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, C] and [3, 3, C, F] -> [B, H, W, F], with padding of 1 on each side."""
    products = jnp.einsum("kpc,kcf->kpf", _of_map(x), _of_kernel(kernel))
    return _to_map(_made(products), x.shape)


def input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
    """The gradient [B, H, W, C] of `convolve` in its map, from that of its result."""
    turned = _of_kernel(kernel[::-1, ::-1])
    products = jnp.einsum("kpf,kcf->kpc", _of_map(g), turned)
    return _to_map(_made(products), g.shape)


def kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """The gradient [3, 3, C, F] of `convolve` in its kernel, from that of its result."""
    products = _made(jnp.einsum("kpc,kpf->kcf", _of_map(x), _of_gradient(g)))
    weights = np.einsum("ka,lb->klab", G, G).reshape(16, 3, 3, 1, 1)
    return _sum(weights[k] * products[k] for k in range(16))
