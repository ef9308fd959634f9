"""Slots that hold no token, which a CPU need not compute.

Letters: E experts, G groups, C capacity, K choices, T tokens of all groups, D and F widths.

With a capacity every expert has C slots for each group, and a quarter of them or more stay empty.
How many do is known at run time only. An accelerator computes them all, as a batched product of
fixed sizes, and so do devices that exchange them. On one CPU the rest is computed as if there were
no capacity: choices that found a slot are sorted by expert and computed by segments.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moe.routing.placement import Placement
from moe.routing.route import Routing
from trainlib.sharding.constrain import platform

_LEAST_ROWS = 64  # of an expert: with fewer, fetching its weights costs more than empty slots
_LEAST_WORK = 2**26  # rows D F: with less, some seconds of compilation are not worth it


def skips_empty_slots(
    routed: Routing,
    hidden: tuple[int, ...],
    hidden_scale: jax.Array | None,
    placement: Placement,
) -> bool:
    """Whether a layer with capacity is computed as `placed` by `moe.exchange.dropless`.

    Args:
      routed: with a capacity.
      hidden: shape of the experts' weights, [E, D, F].
      hidden_scale: see `moe.exchange.capacity.with_capacity`; it is drawn by slot.
      placement: the mesh axes.
    """
    exchanged = placement.automatic or placement.expert_axis or placement.mlp_axis
    if platform() != "cpu" or exchanged or hidden_scale is not None:
        return False
    sizes = routed.expert.size, routed.source.size
    if not all(isinstance(size, int) for size in sizes):  # of a program for any number of tokens
        return False
    rows = min(sizes)
    experts, width, wide = hidden
    return rows >= _LEAST_ROWS * experts and rows * width * wide >= _LEAST_WORK


def placed(routed: Routing) -> Routing:
    """The same with the choices that found no slot sent nowhere."""
    return dataclasses.replace(
        routed, expert=jnp.where(routed.placed, routed.expert, routed.num_experts)
    )
