"""Batch normalisation (Ioffe & Szegedy 2015, arXiv 1502.03167) with float32 statistics.

Letters: B rows of a batch, n values a channel (all axes but the last, each value as often as its
row counts), C channels, w [B] what each row counts, 1 or 0 as a rule.

Statistics are over the global batch: under `jit` with a sharded batch the means below are means
over all devices. Of a batch that is cut into microbatches, a layer sees one piece at a time. The
backward pass is written by hand, so that the input and three vectors are all that the layer keeps:

    mean = sum w x / n,  var = sum w (x - mean)^2 / n,  n = sum w
    xhat = (x - mean) * r,  r = (var + eps)^-1/2,  y = scale * xhat + bias
    dscale = sum dy xhat,  dbias = sum dy,
    dx = scale * r * (dy - w * (dbias / n + xhat * dscale / n))

A maximum over windows (`pool`) may follow. It is then taken of x, before the normalisation, which
grows with x where scale is not negative: the same values to the last bit, normalised for a quarter
of the pixels where the stride is 2. Channels of a negative scale are negated first, x and scale
alike.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.model import statistics
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer
from trainlib.model.statistics import Moments
from trainlib.model.weights import Initializer, Observed, declare, declare_stat
from trainlib.sharding.constrain import platform
from vitattn.layers.init import ONES, ZEROS
from vitattn.layers.pool import max_pool

UNMOVED = jax.nn.initializers.constant(statistics.FRESH)
ROUNDING = 2.0**-22  # of a mean of squares in float32, as a share of it
FAR = 64.0  # squared mean over variance from which one pass is not exact enough, see `_statistics`
Weights = jax.Array | None  # f32 [B], what each row counts in batch statistics; None: all 1
Pool = tuple[int, int] | None  # window and stride of a maximum over pixels


def values_counted(x: jax.Array, weights: Weights) -> jax.Array:
    """n of x [B, .., C], f32 scalar."""
    rows = x.shape[0] if weights is None else weights.astype(jnp.float32).sum()
    return jnp.asarray(rows * math.prod(x.shape[1:-1]), jnp.float32)


def _counted(x: jax.Array, weights: Weights) -> tuple[Weights, jax.Array]:
    """w and n. Where no row counts, all do: unnormalised, a deep network would overflow."""
    if weights is not None:
        wide = weights.astype(jnp.float32)
        weights = jnp.where(wide.sum() > 0, wide, 1.0)
    return weights, values_counted(x, weights)


def _total(x: jax.Array, weights: Weights) -> jax.Array:
    """Sum of w x over all axes but the last. Rows are summed before they are weighed: the weights
    then meet B C numbers, not all of x.
    """
    if weights is None:
        return jnp.sum(x, tuple(range(x.ndim - 1)))
    return jnp.sum(weights[:, None] * jnp.sum(x, tuple(range(1, x.ndim - 1))), 0)


def _statistics(x: jax.Array, weights: Weights, near: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance.

    Sums that need no mean are made in one pass, on an accelerator while the convolution writes its
    result; a second pass over every map is 15 % of the time of a network there. But E[d^2] - E[d]^2
    of d = x - near cancels as far as `near` is off: by r^2 / 10^7 of the variance, with r the
    distance of `near` from the mean in standard deviations. The running mean is within one of them
    after the first step; before it, at 0, r is that of the maps themselves, rarely more than 10.

    On CPU `near` is not used, for x - near would be written to memory, and where r^2 is more than
    `FAR` for a channel a second pass is made.
    """
    weights, count = _counted(x, weights)
    x = x.astype(jnp.float32)
    cpu = platform() == "cpu"
    off = x if cpu else x - near
    first, second = _total(off, weights) / count, _total(jnp.square(off), weights) / count
    square = jnp.square(first)
    # Not below what the sums are rounded by, or a mean that is far off would divide by nothing.
    var = jnp.maximum(second - square, ROUNDING * square)
    if not cpu:
        return near + first, var
    again = functools.partial(_centred, x, weights, first, count)
    return first, jax.lax.cond(jnp.any(square > FAR * var), again, lambda: var)


def _centred(x: jax.Array, weights: Weights, mean: jax.Array, count: jax.Array) -> jax.Array:
    """Biased variance [C] of x f32 [B, .., C] whose mean is known."""
    return _total(jnp.square(x - mean), weights) / count


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 6))
def batch_normalise(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    eps: float,
    weights: Weights = None,
    near: jax.Array | None = None,
    pool: Pool = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x by the statistics of the rows that count.

    Args:
      x: [B, .., C].
      scale: f32 [C], not negative where there is a pool.
      bias: f32 [C].
      eps: added to the variance.
      weights: [B], not negative: how much each row counts in the statistics; all rows are
        normalised. None: all count 1. No gradient flows into them.
      near: f32 [C], close to the mean where that is large beside the standard deviation; see
        `_statistics`. None: 0. It does not change the function, and no gradient flows into it.
      pool: takes the maximum of windows of x [B, H, W, C] before it is normalised; the statistics
        are those of x.

    Returns:
      Normalised [B, .., C] in the type of x; mean [C] and biased variance [C], float32, of all rows
      where none counts. The last two are for running averages: no gradient flows through them.
    """
    return _forward(x, scale, bias, eps, weights, near, pool)[0]


def _forward(x, scale, bias, eps, weights, near, pool):
    mean, var = _statistics(x, weights, jnp.zeros_like(scale) if near is None else near)
    inverse = jax.lax.rsqrt(var + eps)
    seen = max_pool(x, *pool) if pool else x
    y = affine(seen, mean, scale * inverse, bias)
    return (y, mean, var), (x, seen, scale, weights, near, mean, inverse)


def _backward(eps, pool, residuals, cotangents):
    x, seen, scale, weights, near, mean, inverse = residuals
    dy = cotangents[0].astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    used, count = _counted(x, weights)
    dbias = jnp.sum(dy, axes)
    dscale = (jnp.sum(dy * seen.astype(jnp.float32), axes) - mean * dbias) * inverse
    # dx as a dy + w (b x + c) with vectors a, b, c: no centred copy of x is made.
    a = scale * inverse
    b = -a * inverse * dscale / count
    slope, offset = b, -a * dbias / count - b * mean
    if used is not None:
        # Made outside of the loops over pixels, which a TPU runs once for each tap of a kernel.
        rows = jax.lax.optimization_barrier((used[:, None] * slope, used[:, None] * offset))
        slope, offset = (row.reshape(-1, *[1] * (x.ndim - 2), x.shape[-1]) for row in rows)
    direct = a * dy
    if pool:
        _, spread = jax.vjp(lambda x: max_pool(x, *pool), x)
        (direct,) = spread(direct.astype(x.dtype))
    dx = direct + (slope * x.astype(jnp.float32) + offset)
    unmoved = jax.tree.map(jnp.zeros_like, (weights, near))
    return dx.astype(x.dtype), dscale, dbias, *unmoved


batch_normalise.defvjp(_forward, _backward)


def affine(x: jax.Array, mean: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - mean) * gain + bias for each channel, computed in float32, in the type of x."""
    return ((x.astype(jnp.float32) - mean) * gain + bias).astype(x.dtype)


class BatchNorm(Layer):
    """Normalises [B, .., C] over all axes but the last.

    With `train` it uses the statistics of the batch, without it the running ones. Who moves the
    running ones depends on how the layer was built:
      - declared (no `rngs`): a call leaves the `Moments` of its batch to the train step, which
        merges those of all microbatches and moves the statistics once;
      - with `rngs`, for use as any Flax layer: the call moves them itself, by the same rule
        (`trainlib.model.statistics.move`), and counts its updates in `count`.
    A frozen layer uses the running ones always, and nothing of it learns: its scale and bias are
    statistics too.

    Args:
      channels: C.
      decay: of the running statistics.
      eps: added to the variance.
      scale_init: ZEROS makes a residual branch start as nothing.
      frozen: all four vectors stay as they are given.
      rngs: keys for arrays at once; None declares them only (`trainlib.model.weights`).
    """

    def __init__(
        self,
        channels: int,
        *,
        decay: float = 0.9,
        eps: float = 1e-5,
        scale_init: Initializer = ONES,
        frozen: bool = False,
        rngs: nnx.Rngs | None = None,
    ):
        self.decay = decay
        self.eps = eps
        self.frozen = frozen
        learned = declare_stat if frozen else declare
        self.scale = learned((channels,), ("channels",), scale_init, rngs)
        self.bias = learned((channels,), ("channels",), ZEROS, rngs)
        self.mean = declare_stat((channels,), ("channels",), ZEROS, rngs)
        self.var = declare_stat((channels,), ("channels",), ONES, rngs)
        self.moves_statistics = rngs is not None
        if self.moves_statistics:
            self.count = declare_stat((), (), UNMOVED, rngs, jnp.int32)

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool = False,
        weights: Weights = None,
        pool: Pool = None,
    ) -> jax.Array:
        """[B, .., C] -> the same, or the maximum of its windows.

        Args:
          x: of any float type.
          train: normalise by the batch, and move or leave its statistics.
          weights: [B], for the statistics of training.
          pool: window and stride of a maximum of [B, H, W, C] that follows (`pool.max_pool`).
        """
        check_array("BatchNorm", x, "... C", "float", C=self.scale.shape[0])
        scale, running = self.scale[...], self.mean[...]
        sign = jnp.where(scale < 0, -1.0, 1.0) if pool else 1.0
        if pool:
            x = x * jnp.asarray(sign, x.dtype)
        scale, running = scale * sign, running * sign
        if self.frozen or not train:
            gain = scale * jax.lax.rsqrt(self.var[...] + self.eps)
            return affine(max_pool(x, *pool) if pool else x, running, gain, self.bias[...])
        # The type of a custom_vjp is lost in the partial that declares it.
        normalised: Any = batch_normalise(
            x, scale, self.bias[...], self.eps, weights, running, pool
        )
        y, mean, var = normalised
        moments = Moments(values_counted(x, weights), mean * sign, var, self.decay)
        if self.moves_statistics:
            moved = statistics.move(self.mean[...], self.var[...], self.count[...], moments)
            self.mean[...], self.var[...], self.count[...] = moved
        else:
            self.observed = Observed(moments)
        return y
