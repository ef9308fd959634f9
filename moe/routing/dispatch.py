"""Moving tokens to the slots of their experts and back, with gathers in both directions.

Letters: G groups, S tokens of a group, E experts, K choices of a token, C slots of one expert for
one group, R slots in all, D width. The maps `slot` [G, S, K] and `source` [E, G, C] are those of
`moe.routing.route.Routing`; each is the inverse of the other, so the backward pass of a gather by
one is a gather by the other and no scatter of tokens is ever made:

    dispatch  buffer = x[source]                 dx      = sum_k dbuffer[slot_k]
    combine   y = sum_k gate_k * buffer[slot_k]  dbuffer = gate[source] * dy[source]
                                                 dgate_k = sum_D(dy[source] * buffer)[slot_k]

Cost: about 15 R D bytes moved forward and backward, linear in tokens; the one-hot einsum of the
papers costs 0.56 S / F of the whole feed-forward layer.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from trainlib.model.inputs import check_array
from trainlib.sharding.constrain import platform

_FILL = lax.GatherScatterMode.FILL_OR_DROP
_IN_BOUNDS = lax.GatherScatterMode.PROMISE_IN_BOUNDS


def _by_slot(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [G, N, ...] at index [E, G, C] in [0, N) -> [E, G, C, ...]."""
    trailing = x.ndim - 2
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(3, 3 + trailing)),
        collapsed_slice_dims=(1,),
        start_index_map=(1,),
        operand_batching_dims=(0,),
        start_indices_batching_dims=(1,),
    )
    sizes = (1, 1, *x.shape[2:])
    return lax.gather(x, index[..., None], numbers, sizes, mode=_IN_BOUNDS)


def _by_token(buffer: jax.Array, slot: jax.Array) -> jax.Array:
    """buffer [E, G, C, ...] at slot [G, S] -> [G, S, ...]; zeros where the slot is E * C."""
    capacity, trailing = buffer.shape[2], buffer.ndim - 3
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(2, 2 + trailing)),
        collapsed_slice_dims=(0, 2),
        start_index_map=(0, 2),
        operand_batching_dims=(1,),
        start_indices_batching_dims=(0,),
    )
    index = lax.optimization_barrier(jnp.stack([slot // capacity, slot % capacity], axis=-1))
    sizes = (1, 1, 1, *buffer.shape[3:])
    return lax.gather(buffer, index, numbers, sizes, mode=_FILL, fill_value=0)


def _filled(source: jax.Array, slot: jax.Array) -> jax.Array:
    """bool [E, G, C]: whether the slot holds a choice."""
    return source < slot.shape[1] * slot.shape[2]


def _token(source: jax.Array, slot: jax.Array) -> jax.Array:
    """int32 [E, G, C]: the token in each slot; for an empty one the first token of its group that
    has a slot, and where none has, the last of the group.
    """
    size = slot.shape[1]
    token = jnp.where(_filled(source, slot), source % size, size)
    first = jnp.minimum(jnp.min(token, axis=(0, 2)), size - 1)  # [G]
    # The barrier keeps the division out of the loops over D, which would repeat it D times.
    return lax.optimization_barrier(jnp.where(token < size, token, first[:, None]))


@jax.custom_vjp
def copy_to_slots(x: jax.Array, slot: jax.Array, source: jax.Array) -> jax.Array:
    """As `dispatch`, but an empty slot holds a copy of a token, which is cheaper than zeros.

    That token is one of its group that has a slot itself, so that it is finite wherever those are
    that are computed on. The cotangent of an empty slot has to be zero, as that of `combine` is, or
    gradients of weights are wrong.
    """
    return _by_slot(x, _token(source, slot))


def _copy_forward(x, slot, source):
    return copy_to_slots(x, slot, source), slot


def _copy_backward(slot, dbuffer):
    dx = jnp.zeros((), jnp.float32)
    for k in range(slot.shape[-1]):
        dx = dx + _by_token(dbuffer, slot[..., k]).astype(jnp.float32)
    return dx.astype(dbuffer.dtype), None, None


copy_to_slots.defvjp(_copy_forward, _copy_backward)


def dispatch(x: jax.Array, slot: jax.Array, source: jax.Array) -> jax.Array:
    """Copies tokens to the slots of their experts.

    Example:
      >>> routing = moe.route(logits, config)
      >>> buffer = moe.dispatch(x, routing.slot, routing.source)
      >>> y = moe.combine(experts(buffer), routing.gates, routing.slot, routing.source)

    Args:
      x: [G, S, D], any float type.
      slot: int32 [G, S, K].
      source: int32 [E, G, C].

    Returns:
      [E, G, C, D] in the type of x; empty slots are zero.
    """
    return jnp.where(_filled(source, slot)[..., None], copy_to_slots(x, slot, source), 0)


@jax.custom_vjp
def combine(buffer: jax.Array, gates: jax.Array, slot: jax.Array, source: jax.Array) -> jax.Array:
    """Adds up what the experts made of each token, weighted by the gates, in float32; see the
    example of `dispatch`.

    Args:
      buffer: [E, G, C, D], what the experts return.
      gates: float32 [G, S, K].
      slot: int32 [G, S, K].
      source: int32 [E, G, C].

    Returns:
      [G, S, D] in the type of buffer; zero for a token that has no slot.
    """
    experts, groups, slots = source.shape
    sizes = {"experts": experts, "groups": groups, "slots": slots}
    check_array("moe.combine", buffer, "experts groups slots D", "float", **sizes)
    y = jnp.zeros((), jnp.float32)
    for k in range(slot.shape[-1]):
        y = y + gates[..., k, None] * _by_token(buffer, slot[..., k]).astype(jnp.float32)
    return y.astype(buffer.dtype)


def _combine_forward(buffer, gates, slot, source):
    return combine(buffer, gates, slot, source), (buffer, gates, slot, source)


def _combine_backward(residuals, dy):
    buffer, gates, slot, source = residuals
    groups, size, choices = slot.shape
    filled = _filled(source, slot)
    flat = gates.swapaxes(1, 2).reshape(groups, choices * size)
    weight = _by_slot(flat, jnp.minimum(source, choices * size - 1))
    weight = lax.optimization_barrier(jnp.where(filled, weight, 0.0))  # [E, G, C]
    dy_slots = _by_slot(dy, _token(source, slot))  # [E, G, C, D]
    if platform() == "tpu":  # or what was gathered is turned into float32 by a pass of its own
        dy_slots = lax.optimization_barrier(dy_slots)
    dbuffer = jnp.where(filled[..., None], weight[..., None] * dy_slots.astype(jnp.float32), 0.0)
    # Matrix products: the CPU compiler makes them 30 times faster than sums over the last axis.
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if platform() == "tpu":
        # In the pass over the slots that makes dbuffer, and no gather of rows.
        by_slot = dot("egcd,egcd->egc", dy_slots, buffer)
        dgates = [_by_token(by_slot, slot[..., k]) for k in range(choices)]
    else:
        # Row by row, without keeping dy_slots in memory.
        dgates = [dot("gsd,gsd->gs", dy, _by_token(buffer, slot[..., k])) for k in range(choices)]
    return dbuffer.astype(buffer.dtype), jnp.stack(dgates, axis=-1), None, None


combine.defvjp(_combine_forward, _combine_backward)
