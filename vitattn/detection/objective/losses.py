"""Losses of a RetinaNet on one level of its pyramid, summed over what counts.

Letters: B images, h w a map, A anchors of a location, C classes. Channel a C + c of the logits is
class c of anchor a.

Focal loss (arXiv 1708.02002, equation 5). With u = x where the class is absent and -x where it is
there, q = sigmoid(u) is the share given to the wrong answer, and

    loss     = alpha_t q^gamma softplus(u)
    dloss/du = alpha_t q^gamma (gamma (1 - q) softplus(u) + q)

q^gamma is exp(gamma log_sigmoid(u)): the power of a difference, (1 - p)^gamma, has no gradient at 0
for gamma < 1, and rounds. The backward pass is written by hand, so that the logits are all that is
kept: they are read once forwards, read and their gradient written once backwards.

What a logit has to be is told by one comparison of its channel with the channel of its anchor's
class; no array of B h w A C targets is made.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

Residuals = tuple[jax.Array, jax.Array]


def focal(logits: jax.Array, classes: jax.Array, alpha: float, gamma: float) -> jax.Array:
    """Sum of the focal loss of every class of every anchor, f32 scalar.

    Args:
      logits: [B, h, w, A C], any float type; f32 arithmetic.
      classes: i32 [B, h, w, A]: a class in [0, C), -1 (none of them) or less (the anchor takes no
        part: it adds nothing to loss or gradient even if its logits are NaN).
      alpha: weight of classes that are there; 1 - alpha of those that are not.
      gamma: exponent, not negative; 0 is cross entropy.

    The loss has no gradient in `classes`.
    """
    return jnp.asarray(_focal(logits, classes, alpha, gamma))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _focal(logits: jax.Array, classes: jax.Array, alpha: float, gamma: float) -> jax.Array:
    wrong, weight, _ = _targets(logits, classes, alpha)
    entropy, log_share, _ = _shares(wrong)
    return jnp.sum(weight * jnp.exp(gamma * log_share) * entropy)


def _focal_forward(
    logits: jax.Array, classes: jax.Array, alpha: float, gamma: float
) -> tuple[jax.Array, Residuals]:
    return _focal(logits, classes, alpha, gamma), (logits, classes)


def _focal_backward(
    alpha: float, gamma: float, kept: Residuals, cotangent: jax.Array
) -> tuple[jax.Array, np.ndarray]:
    logits, classes = kept
    wrong, weight, sign = _targets(logits, classes, alpha)
    entropy, log_share, share = _shares(wrong)
    slope = gamma * (1 - share) * entropy + share
    slope *= weight * sign * jnp.exp(gamma * log_share)
    nothing = np.zeros(classes.shape, jax.dtypes.float0)
    return (cotangent * slope).astype(logits.dtype), nothing


_focal.defvjp(_focal_forward, _focal_backward)


def _shares(wrong: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """softplus(u), log_sigmoid(u) and sigmoid(u), of one exponential and one logarithm."""
    small = jnp.exp(-jnp.abs(wrong))
    rest = jnp.log1p(small)
    share = jnp.where(wrong < 0, small, 1.0) / (1.0 + small)
    return jnp.maximum(wrong, 0.0) + rest, jnp.minimum(wrong, 0.0) - rest, share


def _targets(
    logits: jax.Array, classes: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """u, alpha_t (0 where nothing counts) and du/dx, f32 [B, h, w, A C]."""
    anchors, channels = classes.shape[-1], logits.shape[-1]
    count = channels // anchors
    channel = jnp.arange(channels)
    # The channel of the class of each anchor, or the mark of background or of nothing.
    own = jnp.where(classes >= 0, classes + count * jnp.arange(anchors), classes)
    # To each channel that of its anchor: a chain of A selects, which fuses with all that follows; a
    # repeat would be an array of its own, and [.., A, C] another layout of the logits.
    chosen = own[..., :1]
    for anchor in range(1, anchors):
        chosen = jnp.where(channel >= anchor * count, own[..., anchor : anchor + 1], chosen)
    present, counted = chosen == channel, chosen >= -1
    sign = jnp.where(present, -1.0, 1.0)
    weight = jnp.where(present, alpha, jnp.where(counted, 1.0 - alpha, 0.0))
    # Masked before the arithmetic: 0 * NaN is NaN.
    return sign * jnp.where(counted, logits.astype(jnp.float32), 0.0), weight, sign


def huber(offsets: jax.Array, targets: jax.Array, positive: jax.Array, delta: float) -> jax.Array:
    """Sum over the coordinates of positive anchors of the Huber loss, f32 scalar.

    d^2 / 2 for |d| <= delta, else delta (|d| - delta / 2), d the difference. All four coordinates
    of a positive anchor count: the public TPU code leaves out those whose target is 0, which is a
    coordinate that is right already, not one that is missing.

    Args:
      offsets: [.., A 4], any float type; f32 arithmetic.
      targets: f32 [.., A, 4].
      positive: bool [.., A]; others add nothing to loss or gradient even if they are NaN.
      delta: above 0.
    """
    mask = jnp.broadcast_to(positive[..., None], targets.shape).reshape(offsets.shape)
    difference = offsets.astype(jnp.float32) - targets.reshape(offsets.shape)
    size = jnp.abs(jnp.where(mask, difference, 0.0))
    near = jnp.minimum(size, delta)
    return jnp.sum(near * (size - near / 2))
