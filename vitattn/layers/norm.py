"""Batch normalisation (Ioffe & Szegedy 2015, arXiv 1502.03167) with float32 statistics.

Letters: n values a channel (all axes but the last), C channels.

Statistics are over the global batch: under `jit` with a sharded batch the means below are means
over all devices. The backward pass is written by hand, so that the input and two vectors of C are
all that the layer keeps:

    xhat = (x - mean) * r,  r = (var + eps)^-1/2,  y = scale * xhat + bias
    dscale = sum dy xhat,  dbias = sum dy,  dx = scale * r * (dy - dbias / n - xhat * dscale / n)
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.nn import Initializer, declare, declare_stat

ONES = jax.nn.initializers.ones
ZEROS = jax.nn.initializers.zeros


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance, in two passes: E[x^2] - E[x]^2 cancels where the mean is large."""
    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axes)
    return mean, jnp.mean(jnp.square(x - mean), axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[.., C] -> (normalised [.., C] in the type of x, mean [C], biased variance [C], both
    float32).

    Mean and variance are for running averages: no gradient flows through these two results.
    """
    return _forward(x, scale, bias, eps)[0]


def _forward(x, scale, bias, eps):
    mean, var = _statistics(x)
    inverse = jax.lax.rsqrt(var + eps)
    y = affine(x, mean, scale * inverse, bias)
    return (y, mean, var), (x, scale, mean, inverse)


def _backward(eps, kept, cotangents):
    x, scale, mean, inverse = kept
    dy = cotangents[0].astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    wide = x.astype(jnp.float32)
    dbias = jnp.sum(dy, axes)
    dscale = (jnp.sum(dy * wide, axes) - mean * dbias) * inverse
    # dx as a dy + b x + c with vectors a, b, c: no centred copy of x is made.
    a = scale * inverse
    b = -a * inverse * dscale / count
    dx = a * dy + b * wide - (a * dbias / count + b * mean)
    return dx.astype(x.dtype), dscale, dbias


batch_normalise.defvjp(_forward, _backward)


def affine(x: jax.Array, mean: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - mean) * gain + bias for each channel, computed in float32, in the type of x."""
    return ((x.astype(jnp.float32) - mean) * gain + bias).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Normalises [.., C] over all axes but the last.

    With `train` it uses the statistics of the batch and moves the running ones:
    running = decay * running + (1 - decay) * batch, the variance unbiased (n / (n - 1)) as in the
    papers' TensorFlow. Without, it uses the running ones.

    Args:
      channels: C.
      decay: of the running statistics.
      eps: added to the variance.
      scale_init: ZEROS makes a residual branch start as nothing.
    """

    def __init__(
        self,
        channels: int,
        *,
        decay: float = 0.9,
        eps: float = 1e-5,
        scale_init: Initializer = ONES,
    ):
        self.decay = decay
        self.eps = eps
        self.scale = declare((channels,), ("channels",), scale_init)
        self.bias = declare((channels,), ("channels",), ZEROS)
        self.mean = declare_stat((channels,), ("channels",), ZEROS)
        self.var = declare_stat((channels,), ("channels",), ONES)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            gain = scale * jax.lax.rsqrt(self.var[...] + self.eps)
            return affine(x, self.mean[...], gain, bias)
        y, mean, var = batch_normalise(x, scale, bias, self.eps)
        count = math.prod(x.shape[:-1])
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] = self.decay * self.mean[...] + (1 - self.decay) * mean
        self.var[...] = self.decay * self.var[...] + (1 - self.decay) * unbiased
        return y
