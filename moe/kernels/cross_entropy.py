"""Cross-entropy over a vocabulary without an array of all logits: one tile of tokens at a time.

Letters: B sequences, L length, D model width, V vocabulary, T tokens of a tile, C tiles.

Logits float32 [B, L, V] are the largest array of a step, and nothing but a number a token is wanted
of them. The gradient is linear in that of the loss, so the forward pass makes it as well, while it
has the logits: three matrix products, where computing logits again in the backward pass takes four.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from trainlib.sharding.constrain import platform

# Logits float32 of a tile, so that they stay in the 128 MiB of memory on the chip of a TPU. Smaller
# tiles read and write the gradient of the matrix more often: for 768 and 1,024 columns on v5e, 64
# MiB take 1.18 times as long.
TILE_BYTES = 96 * 2**20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenValues:
    """What is measured of each token, float32 [B, L]; 0 where its weight is 0.

    Attributes:
      cross_entropy: in nats.
      normaliser: logsumexp of the logits.
      right: 1 where the target has the largest logit. Equal logits rank by word number, so a model
        that says the same for all words is right for one of V; NaN is never right.
    """

    cross_entropy: jax.Array
    normaliser: jax.Array
    right: jax.Array


def tile_length(sequences: int, length: int, words: int) -> int:
    """How many positions of all sequences make a tile of at most `TILE_BYTES` (one at least), such
    that the last tile is nearly as full as the others.
    """
    most = max(1, TILE_BYTES // (4 * sequences * words))
    return -(-length // -(-length // most))


def token_values(
    x: jax.Array,
    matrix: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    z_loss: float,
    *,
    gradients: bool,
    columns: str | None = None,
) -> tuple[TokenValues, tuple[jax.Array, jax.Array] | None]:
    """What is measured of each token, and the gradients of

        sum(weights * (cross_entropy + z_loss * normaliser^2))

    Args:
      x: [B, L, D].
      matrix: [D, V] in the type of x; on a mesh [D, V / n], this device's part of the words.
      targets: int32 [B, L]; what stands where the weight is 0 does not matter.
      weights: float32 [B, L]; nothing of a token of weight 0 counts, be it NaN.
      z_loss: see above.
      gradients: False leaves them out.
      columns: the mesh axis over which a `shard_map` around this has split the words.

    Returns:
      (values, None or the gradients of x, [B, L, D] in its type, and of the matrix, float32
      [D, V]); on a mesh that of x is the part that the device's own words contribute.
    """
    sequences, length = x.shape[:2]
    step = tile_length(sequences, length, matrix.shape[1])
    tiles = -(-length // step)

    def split(array: jax.Array) -> jax.Array:
        """[B, L, ...] -> [C, B * step, ...]"""
        rest = array.shape[2:]
        padding = ((0, 0), (0, tiles * step - length), *((0, 0),) * len(rest))
        array = jnp.pad(array, padding).reshape(sequences, tiles, step, *rest)
        return array.swapaxes(0, 1).reshape(tiles, sequences * step, *rest)

    def joined(array: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        rest = array.shape[2:]
        array = array.reshape(tiles, sequences, step, *rest).swapaxes(0, 1)
        return array.reshape(sequences, tiles * step, *rest)[:, :length]

    tile = functools.partial(_tile, matrix, z_loss, gradients, columns)
    parts = split(x), split(targets), split(weights)
    if tiles == 1:
        values, dx, dmatrix = tile(*(part[0] for part in parts))
        values, dx = jax.tree.map(lambda array: array[None], (values, dx))
    else:

        def body(total: jax.Array | None, part: tuple) -> tuple:
            values, dx, dmatrix = tile(*part)
            return jax.tree.map(jnp.add, total, dmatrix), (values, dx)

        start = jnp.zeros(matrix.shape, jnp.float32) if gradients else None
        dmatrix, (values, dx) = jax.lax.scan(body, start, parts)
    values = jax.tree.map(joined, values)
    return values, None if dmatrix is None else (joined(dx), dmatrix)


def _tile(
    matrix: jax.Array,
    z_loss: float,
    gradients: bool,
    columns: str | None,
    x: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[TokenValues, jax.Array | None, jax.Array | None]:
    """Values [T], gradients [T, D] and [D, V] of x [T, D]."""
    counted = weights > 0
    # Before the arithmetic: 0 * NaN is NaN.
    x = jnp.where(counted[:, None], x, 0)
    logits = jnp.matmul(x, matrix, preferred_element_type=jnp.float32)  # [T, V]
    first = 0 if columns is None else jax.lax.axis_index(columns) * matrix.shape[1]
    words = first + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    is_target = words == targets[:, None]
    top = jnp.max(logits, axis=-1)
    total = jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)
    of_target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    # Whether equals of the largest come before the target; NaN equals nothing. On a TPU a third sum
    # shares the pass of the other two, on a CPU it takes twice as long.
    equals = (logits == top[:, None]) & (words < targets[:, None])
    if platform() == "tpu":
        before = jnp.sum(equals.astype(jnp.float32), axis=-1)
    else:
        before = jnp.any(equals, axis=-1).astype(jnp.float32)
    if columns is not None:
        top, total, of_target, before = _over_columns(columns, top, total, of_target, before)
    normaliser = top + jnp.log(total)
    right = counted & (of_target == top) & (before == 0)
    values = TokenValues(
        cross_entropy=jnp.where(counted, normaliser - of_target, 0.0),
        normaliser=jnp.where(counted, normaliser, 0.0),
        right=right.astype(jnp.float32),
    )
    if not gradients:
        return values, None, None
    scale = weights * (1 + 2 * z_loss * normaliser)
    dlogits = jnp.exp(logits - normaliser[:, None]) * scale[:, None]
    dlogits = dlogits - jnp.where(is_target, weights[:, None], 0.0)
    dx = jnp.einsum("tv,dv->td", dlogits, matrix).astype(x.dtype)
    return values, dx, jnp.einsum("td,tv->dv", x, dlogits, preferred_element_type=jnp.float32)


def _over_columns(
    columns: str, top: jax.Array, total: jax.Array, of_target: jax.Array, before: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The same [T] of all words, from those of each device's part of the words."""
    # All in one message: the numbers are few, and each message waits for the slowest device.
    gathered = jax.lax.all_gather(jnp.stack((top, total, of_target, before)), columns)  # [n, 4, T]
    tops, totals, of_targets, befores = gathered.swapaxes(0, 1)
    top = jnp.max(tops, axis=0)
    total = jnp.sum(totals * jnp.exp(tops - top), axis=0)
    before = jnp.sum(jnp.where(tops == top, befores, 0.0), axis=0)
    return top, total, jnp.sum(of_targets, axis=0), before
