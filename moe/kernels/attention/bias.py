"""T5's relative position bias inside the kernels, from one vector a head.

Letters: N heads, R buckets, M distance from which on the bias no longer changes, T rows and columns
of a tile of logits, C tiles to each side of the diagonal in which the bias is not constant.

The bias of a logit depends on the key's position minus the query's alone. A tile is therefore made
of 2 T numbers: all rows hold the same ones, and a roll that turns each row one lane further than
the row above shears them into diagonals. Tiles farther from the diagonal than C have one number.
The way back, from the gradients of the logits of a tile to sums over diagonals, is a tree: the
upper half of the rows is rolled over the lower one and added until one row is left.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from moe.kernels.attention.plan import Plan
from moe.kernels.buckets import BUCKETS, MAX_DISTANCE, relative_buckets

_SUBLANES = 8
FAR = 2  # numbers of a head beside its tiles: the bias of keys far behind and far ahead


def relative_vector(
    table: jax.Array,
    *,
    bidirectional: bool,
    max_distance: int = MAX_DISTANCE,
    buckets: int = BUCKETS,
) -> jax.Array:
    """The bias of each offset, key position minus query position, from a table of buckets.

    Args:
      table: float32 [R, N].
      bidirectional: see `relative_buckets`.
      max_distance: M; see `relative_buckets`.
      buckets: R.

    Returns:
      float32 [N, 2 M + 1], for the offsets -M to M; farther ones share the bias of the ends.
    """
    offsets = np.arange(-max_distance, max_distance + 1)
    number = relative_buckets(
        offsets, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance
    )
    # A product, whose gradient is no scatter; at full precision, as in `RelativeBias`.
    chosen = jax.nn.one_hot(jnp.asarray(number), buckets, dtype=jnp.float32)  # [2 M + 1, R]
    return jnp.einsum("or,rn->no", chosen, table, precision="highest")


def near_and_far(
    plan: Plan, vector: jax.Array | None, masked: float
) -> tuple[jax.Array, jax.Array | None]:
    """What the kernels read of a bias.

    Args:
      plan: of the call.
      vector: float32 [N, 2 M + 1], or None where causality is all there is.
      masked: takes the place of the bias of keys after the query where those are not seen.

    Returns:
      near: float32 [N, 1, (2 C + 2) T], for the offsets 1 - (C + 1) T to (C + 1) T.
      far: float32 [2 N], the bias of keys far behind and of those far ahead, a head after another.
    """
    ahead = (plan.aside + 1) * plan.rows
    offsets = np.arange(1 - ahead, ahead + 1)
    far = None
    if vector is None:
        near = jnp.zeros((plan.heads, len(offsets)), jnp.float32)
    else:
        distance = vector.shape[1] // 2
        far = vector[:, jnp.array([0, 2 * distance])].reshape(-1)
        more = ahead - distance
        near = jnp.pad(vector, ((0, 0), (more, more)), mode="edge")[:, 1:]
    if plan.causal:
        near = jnp.where(jnp.asarray(offsets > 0), masked, near)
    return near[:, None], far


def toeplitz(vector: jax.Array, tile: int) -> jax.Array:
    """Inside a kernel: the bias [T, T] of a tile, from [1, 2 T] numbers of which the first is that
    of the last query and the first key.
    """
    from jax.experimental.pallas import tpu as pltpu

    alike = jnp.broadcast_to(vector, (tile, 2 * tile))
    return pltpu.roll(alike, tile + 1, 1, stride=1, stride_axis=0)[:, :tile]


def diagonals(gradient: jax.Array, tile: int) -> jax.Array:
    """Inside a kernel: the gradient [1, 2 T] of what `toeplitz` reads, from that of what it makes,
    [T, T].
    """
    from jax.experimental.pallas import tpu as pltpu

    rows = jnp.concatenate([gradient, jnp.zeros_like(gradient)], axis=1)
    half = tile // 2
    while half >= _SUBLANES:
        rows = pltpu.roll(rows[:half], half, 1) + rows[half:]
        half //= 2
    # Of the last eight rows all are added to all: only the last one then holds the whole sum.
    while half:
        rows = pltpu.roll(pltpu.roll(rows, half, 1), half, 0) + rows
        half //= 2
    return rows[_SUBLANES - 1 :]
