"""Attention of one new token of each sequence to cached keys and values.

Letters: B sequences, L places of a cache, K length of the encoder's output, N heads, H width of one
head, D model width, R buckets, C copies of a sequence in a row (beams, draws).

A cache lies as the two products of attention read it: keys [B, N, H, L], values [B, N, L, H]. So a
step writes one column and one row and transposes nothing. Of a single sequence the axis B may be
left out of the whole cache: XLA drops it in products, and a loop that carries it would keep, and
copy, the cache in both forms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from moe.kernels.attention.blocks import MASKED
from moe.layers.attention import Attention
from moe.layers.attention_bias import RelativeBias
from moe.layers.product import projected
from moe.layers.residual import to_residual
from trainlib.sharding.constrain import constrain


def empty_cache(layer: Attention, batch: int, length: int, dtype: DTypeLike) -> tuple:
    """Keys [B, N, H, L] and values [B, N, L, H] before the first token."""
    keys = jnp.zeros((batch, layer.num_heads, layer.head_dim, length), dtype)
    return _placed(keys), _placed(keys.swapaxes(2, 3))


def source_cache(layer: Attention, source: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys [B, N, H, K] and values [B, N, K, H] of the encoder's output [B, K, D]."""
    keys, values = layer.keys_values(source)  # [B, K, N, H]
    return _placed(keys.transpose(0, 2, 3, 1)), _placed(values.transpose(0, 2, 1, 3))


def _placed(x: jax.Array) -> jax.Array:
    return constrain(x, *("layer_batch", "head", None, None)[4 - x.ndim :])


def attend_own(
    layer: Attention,
    x: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array,
    added: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Self-attention of one more token.

    Args:
      layer: the weights.
      x: [B, 1, D].
      keys: [B, N, H, L], of the tokens before.
      values: [B, N, L, H].
      position: int32 scalar or [B], number of tokens before.
      added: float32 [1 or B, N, 1, L], see `DecodingBias.at`.

    Returns:
      ([B, 1, D], keys, values with this token).
    """
    new = (projected(layer, name, x) for name in ("key", "value"))  # [B, 1, N*H]
    key, value = (_by_heads(layer, y, keys) for y in new)  # [B, N, 1, H]
    keys = _write(keys, key.swapaxes(-1, -2), position, -1)
    values = _write(values, value, position, -2)
    return _attend(layer, x, keys, values, added), keys, values


def _by_heads(layer: Attention, x: jax.Array, like: jax.Array) -> jax.Array:
    """[B * C, 1, N*H] -> [B, N, C, H], without B where a cache has none."""
    heads = x.reshape(*like.shape[:-3], -1, layer.num_heads, layer.head_dim)
    return _placed(heads.swapaxes(-3, -2))


def _write(cache: jax.Array, new: jax.Array, position: jax.Array, axis: int) -> jax.Array:
    """Replaces what lies at `position` of an axis."""
    update = jax.lax.dynamic_update_slice_in_dim
    if position.ndim:  # each sequence at its own
        return jax.vmap(lambda old, one, at: update(old, one, at, axis))(cache, new, position)
    return update(cache, new, position, axis)


def attend_source(
    layer: Attention, x: jax.Array, keys: jax.Array, values: jax.Array, added: jax.Array | None
) -> jax.Array:
    """Cross-attention of one token of each sequence.

    Args:
      layer: the weights.
      x: [B * C, 1, D]: C copies of each input, one after the other.
      keys: [B, N, H, K] of the encoder's output.
      values: [B, N, K, H].
      added: float32 [B, 1, 1, K], `MASKED` at padding; None: there is none.

    Returns:
      [B * C, 1, D].
    """
    return _attend(layer, x, keys, values, added)


def _attend(
    layer: Attention, x: jax.Array, keys: jax.Array, values: jax.Array, added: jax.Array | None
) -> jax.Array:
    """[B * C, 1, D] attends to keys [B, N, H, L] and values [B, N, L, H] -> [B * C, 1, D]."""
    query = _by_heads(layer, projected(layer, "query", x), keys)  # [B, N, C, H]
    logits = jnp.matmul(query, keys, preferred_element_type=jnp.float32)  # [B, N, C, L]
    if added is not None:
        logits = logits + (added if keys.ndim == added.ndim else added[0])
    probabilities = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    mixed = _placed(jnp.matmul(probabilities, values)).swapaxes(-3, -2)  # [B, C, N, H]
    mixed = mixed.reshape(*x.shape[:2], layer.num_heads * layer.head_dim)
    return to_residual(projected(layer, "out", mixed))


class DecodingBias:
    """What self-attention adds to the logits of one token: its relative bias, and a mask of the
    places after it.

    Both follow from the distance alone. So they are one vector for each head, made once, of which a
    step takes a part.

    Args:
      relative: the layer that holds the table.
      length: L.
    """

    def __init__(self, relative: RelativeBias, length: int):
        past = relative.of_distances(np.arange(1 - length, 1))  # [N, L], the farthest first
        future = jnp.full((past.shape[0], length - 1), MASKED, past.dtype)
        self.vector, self.length = jnp.concatenate((past, future), axis=1), length  # [N, 2L - 1]

    def at(self, position: jax.Array) -> jax.Array:
        """float32 [1 or B, N, 1, L] of tokens at `position`, int32 scalar or [B]."""

        def one(position: jax.Array) -> jax.Array:
            start = self.length - 1 - position
            return jax.lax.dynamic_slice_in_dim(self.vector, start, self.length, axis=1)

        found = jax.vmap(one)(position) if position.ndim else one(position)[None]
        return constrain(found[:, :, None], None, "head", None, None)
