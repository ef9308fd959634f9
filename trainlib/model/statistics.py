"""Running statistics of batch normalisation: one update a step, from all examples that count.

M microbatches, S layers with running statistics, C channels.

A layer only observes: in training it leaves the `Moments` of its batch, and the step merges those
of all microbatches and moves the running mean and variance once,

    running += share * (batch - running),  share = max(1 - decay, 10 / (10 + n)),

after n updates, with the variance unbiased (N / (N - 1)) as in the papers' TensorFlow. The first
update has the share 1, so nothing is left of the 0 and 1 that statistics start as: what is stored
is at all times an average of batches, to be used as it is. While the weights change quickly it
forgets quickly, as the average of weights does (`trainlib.step.ema`), whatever the decay; from
n = 10 decay / (1 - decay) on (90 updates at 0.9, 990 at 0.99) it is the plain average.

The counts of updates, i32 [S] in the order of `layers`, begin at 1; 0 says that nobody counted
(imported weights, checkpoints of earlier releases), and such statistics move by 1 - decay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from trainlib.model.weights import Arrays

WARM_UP = 10.0  # n + 10 updates are averaged by their last tenth
UNCOUNTED, FRESH = 0, 1  # counts of statistics that others made, and of new ones


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """What one layer saw in one batch.

    Attributes:
      count: f32 scalar, values of a channel, each as often as its row counts.
      mean: f32 [C].
      var: f32 [C], biased.
      decay: of the layer's running statistics.
    """

    count: jax.Array
    mean: jax.Array
    var: jax.Array
    decay: float = dataclasses.field(metadata={"static": True})


def layers(names: Iterable[str]) -> list[str]:
    """The layers among the names of statistics that have a running mean and variance, sorted: the
    order of their counts.
    """
    there = set(names)
    means = (name.removesuffix("mean") for name in there if f".{name}".endswith(".mean"))
    return sorted(prefix.removesuffix(".") for prefix in means if f"{prefix}var" in there)


def fresh(names: Iterable[str]) -> jax.Array | tuple[()]:
    """Counts of statistics that nothing was averaged into; () where no layer has any."""
    number = len(layers(names))
    return jnp.full(number, FRESH, jnp.int32) if number else ()


def uncounted(names: Iterable[str]) -> jax.Array | tuple[()]:
    """Counts of statistics that others made; () where no layer has any."""
    number = len(layers(names))
    return jnp.full(number, UNCOUNTED, jnp.int32) if number else ()


def merge(pieces: Moments) -> Moments:
    """Moments with a leading dimension M -> those of all examples together.

    By the law of total variance: the mean of the variances plus the variance of the means.
    """
    total = pieces.count.sum()
    part = (pieces.count / jnp.where(total > 0, total, 1.0))[:, None]
    mean = jnp.sum(part * pieces.mean, 0)
    var = jnp.sum(part * (pieces.var + jnp.square(pieces.mean - mean)), 0)
    return dataclasses.replace(pieces, count=total, mean=mean, var=var)


def follow(
    running: Arrays, counts: jax.Array, moments: Mapping[str, Moments]
) -> tuple[Arrays, jax.Array]:
    """Moves running statistics by one step.

    Args:
      running: all statistics; those of a layer are LAYER.mean and LAYER.var, f32 [C].
      counts: i32 [S], see the module.
      moments: layer -> what it saw of the whole batch; a batch without a row that counts moves
        nothing.

    Returns:
      The new statistics and counts.
    """
    if not moments:
        return dict(running), counts
    # One vector of all layers: a scalar of each would be an operation of each on an accelerator.
    names = layers(running)
    some = jnp.stack([moments[n].count > 0 if n in moments else jnp.asarray(False) for n in names])
    decays = np.asarray([moments[n].decay if n in moments else 0.0 for n in names])
    shares = _share(counts, decays)
    moved = dict(running)
    for number, layer in enumerate(names):
        if layer in moments:
            prefix = f"{layer}." if layer else ""
            mean, var = f"{prefix}mean", f"{prefix}var"
            moved[mean], moved[var] = _moved(
                running[mean], running[var], shares[number], moments[layer]
            )
    return moved, counts + (some & (counts != UNCOUNTED)).astype(counts.dtype)


def move(
    mean: jax.Array, var: jax.Array, count: jax.Array, seen: Moments
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Moves the running statistics of one layer by one batch.

    Args:
      mean: f32 [C], running.
      var: f32 [C], running.
      count: i32 scalar, see the module.
      seen: what the layer saw; a batch without a row that counts moves nothing.

    Returns:
      The new mean, variance and count.
    """
    mean, var = _moved(mean, var, _share(count, seen.decay), seen)
    counted = (seen.count > 0) & (count != UNCOUNTED)
    return mean, var, count + counted.astype(count.dtype)


def _moved(
    mean: jax.Array, var: jax.Array, share: jax.Array, seen: Moments
) -> tuple[jax.Array, jax.Array]:
    """Running mean and variance, a share of the way to those of a batch."""
    share = jnp.where(seen.count > 0, share, 0.0)
    unbiased = seen.var * (seen.count / jnp.maximum(seen.count - 1.0, 1.0))
    return mean + share * (seen.mean - mean), var + share * (unbiased - var)


def left_after(steps: int, count: int, decay: float) -> float:
    """What is left of a statistic in the average after further steps, as a share of 1."""
    later = jnp.where(count == UNCOUNTED, UNCOUNTED, count + jnp.arange(steps))
    return float(jnp.exp(jnp.sum(jnp.log1p(-_share(later, decay)))))


def _share(count: jax.Array, decay: float | np.ndarray) -> jax.Array:
    """What one batch counts for after `count - 1` updates; alike of many layers."""
    share = jnp.maximum(1.0 - decay, WARM_UP / (WARM_UP + count.astype(jnp.float32) - FRESH))
    return jnp.where(count == UNCOUNTED, 1.0 - decay, share)
