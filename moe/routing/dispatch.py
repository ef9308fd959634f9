"""Moving tokens to the rows of their experts and back, with gathers in both directions.

Letters: G groups, S tokens of a group, E experts, K choices of a token, C rows of one expert for
one group, R rows in all, D width. The maps `slot` [G, S, K] and `source` [E, G, C] are those of
`moe.routing.route.Routing`; each is the inverse of the other, so the backward pass of a gather by
one is a gather by the other and no scatter of rows is ever made:

    dispatch  rows = x[source]                 dx    = sum_k drows[slot_k]
    combine   y = sum_k gate_k * rows[slot_k]  drows = gate[source] * dy[source]
                                               dgate_k = sum_D(dy * rows[slot_k])

Cost: about 15 R D bytes moved forward and backward, linear in tokens; the one-hot einsum of the
papers costs 0.56 S / F of the whole feed-forward layer.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainlib.errors import ConfigError

_FILL = lax.GatherScatterMode.FILL_OR_DROP
_IN_BOUNDS = lax.GatherScatterMode.PROMISE_IN_BOUNDS


def _by_row(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [G, N, ...] at index [E, G, C] -> [E, G, C, ...]; zeros where the index is N."""
    trailing = x.ndim - 2
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(3, 3 + trailing)),
        collapsed_slice_dims=(1,),
        start_index_map=(1,),
        operand_batching_dims=(0,),
        start_indices_batching_dims=(1,),
    )
    # One row of zeros to point at: masking what was gathered would be a second pass over all rows.
    x = jnp.pad(x, ((0, 0), (0, 1), *((0, 0),) * trailing))
    sizes = (1, 1, *x.shape[2:])
    return lax.gather(x, index[..., None], numbers, sizes, mode=_IN_BOUNDS)


def _by_token(rows: jax.Array, slot: jax.Array) -> jax.Array:
    """rows [E, G, C, ...] at slot [G, S] -> [G, S, ...]; zeros where the slot is E * C."""
    capacity, trailing = rows.shape[2], rows.ndim - 3
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(2, 2 + trailing)),
        collapsed_slice_dims=(0, 2),
        start_index_map=(0, 2),
        operand_batching_dims=(1,),
        start_indices_batching_dims=(0,),
    )
    index = lax.optimization_barrier(jnp.stack([slot // capacity, slot % capacity], axis=-1))
    sizes = (1, 1, 1, *rows.shape[3:])
    return lax.gather(rows, index, numbers, sizes, mode=_FILL, fill_value=0)


def _token(source: jax.Array, size: int, choices: int) -> jax.Array:
    """The token in each row; `size` (out of range) for an empty row."""
    # The barrier keeps the division out of the loops over D, which would repeat it D times.
    return lax.optimization_barrier(jnp.where(source < choices * size, source % size, size))


@jax.custom_vjp
def dispatch(x: jax.Array, slot: jax.Array, source: jax.Array) -> jax.Array:
    """Copies tokens to rows.

    Args:
      x: [G, S, D].
      slot: int32 [G, S, K].
      source: int32 [E, G, C].

    Returns:
      [E, G, C, D] in the type of x; empty rows are zero.
    """
    return _by_row(x, _token(source, *slot.shape[1:]))


def _dispatch_forward(x, slot, source):
    return dispatch(x, slot, source), slot


def _dispatch_backward(slot, drows):
    dx = jnp.zeros((), jnp.float32)
    for k in range(slot.shape[-1]):
        dx = dx + _by_token(drows, slot[..., k]).astype(jnp.float32)
    return dx.astype(drows.dtype), None, None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def combine(rows: jax.Array, gates: jax.Array, slot: jax.Array, source: jax.Array) -> jax.Array:
    """Adds up what the experts made of each token, weighted by the gates, in float32.

    Args:
      rows: [E, G, C, D], what the experts return.
      gates: float32 [G, S, K].
      slot: int32 [G, S, K].
      source: int32 [E, G, C].

    Returns:
      [G, S, D] in the type of rows; zero for a token that has no row.
    """
    y = jnp.zeros((), jnp.float32)
    for k in range(slot.shape[-1]):
        y = y + gates[..., k, None] * _by_token(rows, slot[..., k]).astype(jnp.float32)
    return y.astype(rows.dtype)


def _combine_forward(rows, gates, slot, source):
    return combine(rows, gates, slot, source), (rows, gates, slot, source)


def _combine_backward(saved, dy):
    rows, gates, slot, source = saved
    groups, size, choices = slot.shape
    weight = _by_row(gates.swapaxes(1, 2).reshape(groups, choices * size), source)
    weight = lax.optimization_barrier(weight)
    dy_rows = _by_row(dy, _token(source, size, choices)).astype(jnp.float32)
    drows = (weight[..., None] * dy_rows).astype(rows.dtype)
    # A matrix product: the CPU compiler makes it 30 times faster than a sum over the last axis.
    dot = functools.partial(jnp.einsum, "gsd,gsd->gs", preferred_element_type=jnp.float32)
    dgates = [dot(dy, _by_token(rows, slot[..., k])) for k in range(choices)]
    return drows, jnp.stack(dgates, axis=-1), None, None


combine.defvjp(_combine_forward, _combine_backward)


class Segments(NamedTuple):
    """Choices sorted by expert, with no capacity: expert e owns the rows [start_e, start_e + n_e).

    Attributes:
      slot: int32 [1, T, K], the row of each choice; R: the choice is not here.
      source: int32 [1, 1, R], the choice in each row as k * T + t; K * T: the row is empty.
      starts: int32 [E], first row of each expert, a multiple of the alignment.
      sizes: int32 [E], choices of each expert.
    """

    slot: jax.Array
    source: jax.Array
    starts: jax.Array
    sizes: jax.Array


def sort_by_expert(expert: jax.Array, experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Stable sort of choices by expert.

    Args:
      expert: int32 [N], E for choices that go nowhere: they sort last.
      experts: E.

    Returns:
      order [N], the choice at each place; rank [N], the place of each choice; bounds [E + 1], the
      first place of each expert and of what goes nowhere.

    Raises:
      ConfigError: (E + 1) * N does not fit 32 bits.
    """
    count = expert.shape[0]
    if (experts + 1) * count >= 2**31:
        raise ConfigError(
            f"{count} choices of tokens among {experts} experts are too many to sort at once: "
            "(experts + 1) * choices must be below 2**31, that is at most "
            f"{(2**31 - 1) // (experts + 1)} choices. Use a smaller routing.group_size."
        )
    place = jnp.arange(count, dtype=jnp.int32)
    # Expert and position in one number: a plain sort is then stable, and carries no second array.
    packed = jnp.sort(expert * count + place)
    order = packed % count
    edges = jnp.arange(experts + 1, dtype=jnp.int32) * count
    bounds = jnp.searchsorted(packed, edges, method="compare_all").astype(jnp.int32)
    rank = jnp.zeros((count,), jnp.int32).at[order].set(place, unique_indices=True)
    return order, rank, bounds


def segments(expert: jax.Array, experts: int, align: int, multiple: int) -> Segments:
    """Lays choices out by expert for `dispatch` and `combine`, each expert from a multiple of
    `align`.

    R = T * K + E * (align - 1), rounded up: room for any distribution of choices.

    Args:
      expert: int32 [T, K], E for a choice that goes nowhere.
      experts: E.
      align: rows of the smallest block that the expert computation takes.
      multiple: what R is rounded up to.
    """
    tokens, choices = expert.shape
    flat = expert.T.reshape(-1)
    order, rank, bounds = sort_by_expert(flat, experts)
    sizes = bounds[1:] - bounds[:-1]
    padded = -(-sizes // align) * align
    starts = jnp.cumsum(padded) - padded
    rows = -(-(tokens * choices + experts * (align - 1)) // multiple) * multiple
    shift = jnp.append(starts - bounds[:-1], 0)
    slot = jnp.where(flat < experts, rank + shift[flat], rows).reshape(choices, tokens).T
    row = jnp.arange(rows, dtype=jnp.int32)
    owner = jnp.sum(row[:, None] >= starts, axis=1) - 1
    place = row - shift[owner]
    filled = place < bounds[owner + 1]
    source = jnp.where(filled, order[jnp.where(filled, place, 0)], tokens * choices)
    return Segments(slot[None], source[None, None], starts, sizes)
