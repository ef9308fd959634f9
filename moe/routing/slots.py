"""Integer maps between the choices of tokens and the slots of experts.

Letters: G groups, S tokens of a group, E experts, K choices of a token, C capacity (slots of one
expert for one group); without groups and capacity, T tokens and R slots in all. `slot` says where a
choice goes, `source` which choice a slot holds; each is the inverse of the other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from trainlib.errors import ConfigError
from trainlib.sharding.constrain import platform


def sort_by_expert(expert: jax.Array, experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Stable sort of choices by expert.

    Args:
      expert: int32 [N], E for choices that go nowhere: they sort last.
      experts: E.

    Returns:
      int32: order [N], the choice at each place of the sorted order; position [N], of each choice
      that goes somewhere among those of its expert; bounds [E + 1], the first place of each expert
      and of what goes nowhere.

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
    # Expert and place in one number: a plain sort is then stable, and carries no second array.
    packed = jnp.sort(expert * count + place)
    order = packed % count
    edges = jnp.arange(experts + 1, dtype=jnp.int32) * count
    bounds = jnp.searchsorted(packed, edges, method="compare_all").astype(jnp.int32)
    if platform() == "tpu":
        # Which scatters and gathers scalars one by one: counting is a fifth of the time.
        hit = expert[:, None] == jnp.arange(experts, dtype=jnp.int32)  # [N, E]
        counted = jnp.cumsum(hit, axis=0, dtype=jnp.int32)
        position = jnp.sum(jnp.where(hit, counted, 0), axis=1, dtype=jnp.int32) - 1
    else:
        rank = jnp.zeros((count,), jnp.int32).at[order].set(place, unique_indices=True)
        position = rank - bounds[expert]
    return order, position, bounds


def assign_slots(
    expert: jax.Array, priority: jax.Array | None, experts: int, capacity: int
) -> tuple[jax.Array, jax.Array]:
    """Gives the choices their slots: a choice-major stable sort by expert, cut at the capacity.

    Args:
      expert: int32 [G, S, K], E for a choice that is not sent: it sorts last and takes no slot.
      priority: int32 [G, S], a permutation of the tokens that replaces left to right; or None.
      experts: E.
      capacity: C.

    Returns:
      int32 slot [G, S, K] and source [E, G, C], see `moe.routing.route.Routing`.
    """
    _, size, choices = expert.shape
    count = choices * size

    def one_group(expert: jax.Array, priority: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        ordered = expert if priority is None else expert[priority]  # [S, K]
        flat = ordered.T.reshape(count)  # [K * S], choice-major
        order, position, starts = sort_by_expert(flat, experts)
        fits = (flat < experts) & (position < capacity)
        none = experts * capacity
        slot = jnp.where(fits, flat * capacity + position, none).reshape(choices, size).T  # [S, K]
        index = starts[:-1, None] + jnp.arange(capacity, dtype=jnp.int32)  # [E, C]
        filled = index < starts[1:, None]
        source = order[jnp.where(filled, index, 0)]  # [E, C]
        if priority is not None:
            source = source // size * size + priority[source % size]
            slot = jnp.zeros_like(slot).at[priority].set(slot, unique_indices=True)
        return slot, jnp.where(filled, source, count)

    return jax.vmap(one_group, in_axes=(0, None if priority is None else 0), out_axes=(0, 1))(
        expert, priority
    )


class Segments(NamedTuple):
    """Choices sorted by expert, with no capacity: expert e owns the slots [start_e, start_e + n_e).

    Attributes:
      slot: int32 [1, T, K], the slot of each choice; R: the choice is not here.
      source: int32 [1, 1, R], the choice in each slot as k * T + t; K * T: the slot is empty.
      starts: int32 [E], first slot of each expert, a multiple of the alignment.
      sizes: int32 [E], choices of each expert.
    """

    slot: jax.Array
    source: jax.Array
    starts: jax.Array
    sizes: jax.Array


def segments(expert: jax.Array, experts: int, align: int, total: int) -> Segments:
    """Lays choices out by expert for `dispatch` and `combine`, each expert from a multiple of
    `align`.

    Args:
      expert: int32 [T, K], E for a choice that goes nowhere.
      experts: E.
      align: slots of the smallest block that the expert computation takes.
      total: R, at least E * (align - 1) more than the choices that go somewhere.
    """
    tokens, choices = expert.shape
    flat = expert.T.reshape(-1)  # [K * T], choice-major
    order, position, bounds = sort_by_expert(flat, experts)
    sizes = bounds[1:] - bounds[:-1]  # [E]
    padded = -(-sizes // align) * align
    starts = jnp.cumsum(padded) - padded
    first = jnp.append(starts, 0)[flat]
    slot = jnp.where(flat < experts, first + position, total).reshape(choices, tokens).T
    index = jnp.arange(total, dtype=jnp.int32)  # [R]
    owner = jnp.sum(index[:, None] >= starts, axis=1) - 1  # the expert of each slot
    place = index - (starts - bounds[:-1])[owner]  # in the sorted order
    filled = place < bounds[owner + 1]
    source = jnp.where(filled, order[jnp.where(filled, place, 0)], tokens * choices)
    return Segments(slot[None], source[None, None], starts, sizes)
