"""Tokens to their experts and back, on one device or inside a shard_map over a mesh.

Letters: D model width, F hidden width of an expert, E experts, K choices, G groups, S tokens of a
group, C capacity (slots of one expert for one group), R slots of a buffer without capacity; in a
shard_map all of them are the parts of one device, and n is the number of parts of the experts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from moe.kernels.batched import Weights, batched
from moe.kernels.blocked import ALIGN, blocked
from moe.kernels.grouped import TILE, grouped
from moe.kernels.tiled import fits, tiled
from moe.routing.config import RoutingConfig
from moe.routing.dispatch import combine, copy_to_slots
from moe.routing.placement import Placement
from moe.routing.route import Routing
from moe.routing.slots import segments
from trainlib.model.remat import EXCHANGED, PRODUCT, keep
from trainlib.sharding.constrain import platform
from trainlib.sharding.kernels import kernel_mode


def with_capacity(
    x: jax.Array,
    routed: Routing,
    weights: Weights,
    bias_form: str,
    hidden_scale: jax.Array | None,
    placement: Placement,
) -> jax.Array:
    """Each expert computes C slots for each group.

    Args:
      x: [G, S, D].
      routed: of these tokens.
      weights: of the experts, float32 or in the type of x.
      bias_form: see `moe.kernels.batched`.
      hidden_scale: [E, G, C, F] factor of the hidden vectors (dropout), or None.
      placement: the mesh axes.

    Returns:
      [G, S, D] in the type of x.
    """
    with jax.named_scope("dispatch"):
        buffer = copy_to_slots(x, routed.slot, routed.source)  # [E, G, C, D]
    arrived = keep(EXCHANGED, _to_experts(buffer, placement))  # [E/n, G*n, C, D]
    experts, _, _, width = arrived.shape
    ready = arrived.reshape(experts, -1, width)  # [E/n, N, D]
    axis = placement.mlp_axis
    if axis:
        # The parts lead: scattering over another dimension compiles to a whole all-reduce.
        gathered = _in_order(lax.all_gather(ready, axis))
        ready = gathered.swapaxes(0, 1).reshape(experts, -1, width)
    if hidden_scale is not None:
        hidden_scale = _as_arrived(hidden_scale, placement)
    with jax.named_scope("products"):
        mode = None if placement.automatic else kernel_mode()
        if mode and fits(ready, weights):
            out: jax.Array = tiled(ready, weights, hidden_scale, mode == "interpret")
        else:
            rounded = {name: value.astype(x.dtype) for name, value in weights.items()}
            out = batched(ready, rounded, bias_form, hidden_scale)
    if axis:
        parts = out.reshape(experts, placement.size(axis), -1, width).swapaxes(0, 1)
        out = lax.psum_scatter(_in_order(parts), axis)
    returned = keep(EXCHANGED, _from_experts(out.reshape(arrived.shape), placement))
    with jax.named_scope("combine"):
        return combine(returned, routed.gates, routed.slot, routed.source)


def _in_order(parts: jax.Array) -> jax.Array:
    """The same array and cotangent, with the leading dimension outermost in memory.

    A kernel fixes the layout of its results, and swapped axes are then a name only. What is
    scattered would lie inside, and the TPU compiler sums all of it on every device for that.
    """
    if platform() != "tpu":
        return parts
    return with_layout_constraint(parts, Layout(tuple(range(parts.ndim))))


@jax.named_scope("exchange")
def _to_experts(buffer: jax.Array, placement: Placement) -> jax.Array:
    """This device's tokens for all experts [E, G, C, D] -> all tokens for this device's experts
    [E/n, G*n, C, D].
    """
    axis = placement.expert_axis
    if placement.automatic:
        return placement.constrain(
            placement.constrain(buffer, placement.by_group), placement.by_expert
        )
    return lax.all_to_all(buffer, axis, 0, 1, tiled=True) if axis else buffer


@jax.named_scope("exchange")
def _from_experts(buffer: jax.Array, placement: Placement) -> jax.Array:
    """The inverse of `_to_experts`."""
    axis = placement.expert_axis
    if placement.automatic:
        return placement.constrain(
            placement.constrain(buffer, placement.by_expert), placement.by_group
        )
    return lax.all_to_all(buffer, axis, 1, 0, tiled=True) if axis else buffer


def _as_arrived(scale: jax.Array, placement: Placement) -> jax.Array:
    """[E, G, C, F] in the order of the global batch -> [E, N, F] in the order of arrival."""
    experts, groups, slots, width = scale.shape
    over_experts = placement.size(placement.expert_axis)
    over_mlp = placement.size(placement.mlp_axis)
    tokens = groups // (over_experts * over_mlp) * slots
    scale = scale.reshape(experts, over_experts, over_mlp, tokens, width)
    return scale.swapaxes(1, 2).reshape(experts, -1, width)


def dropless(
    x: jax.Array,
    routed: Routing,
    weights: Weights,
    routing: RoutingConfig,
    bias_form: str,
    placement: Placement,
) -> jax.Array:
    """Every choice that is sent is computed.

    Over a mesh, each part of the experts is computed for the tokens of all devices: tokens are
    gathered and results reduce-scattered, since how many go where is not known when compiling.
    Buffers have room for all choices to land on one device.

    Args:
      x: [G, S, D].
      routed: of these tokens.
      weights: of the experts, float32 or in the type of x.
      routing: chooses the kernel.
      bias_form: see `moe.kernels.batched`.
      placement: the mesh axes.

    Returns:
      [G, S, D] in the type of x.
    """
    axes = tuple(axis for axis in (placement.expert_axis, placement.mlp_axis) if axis)
    weights = {name: value.astype(x.dtype) for name, value in weights.items()}
    parts, experts = placement.size(*axes), weights["up"].shape[0]
    tokens = x.reshape(-1, x.shape[-1])  # [T, D] with T = G * S
    gates, expert = (v.reshape(len(tokens), -1) for v in (routed.gates, routed.expert))  # [T, K]
    if axes:
        tokens, gates, expert = (
            lax.all_gather(value, axes, tiled=True) for value in (tokens, gates, expert)
        )
        first = lax.axis_index(placement.expert_axis) * experts if placement.expert_axis else 0
        local = expert - first
        expert = jnp.where((local >= 0) & (local < experts), local, experts)
    blocks = routing.dispatch == "dropless"
    layout = segments(expert, experts, ALIGN if blocks else 1, multiple=ALIGN if blocks else TILE)
    with jax.named_scope("dispatch"):
        buffer: jax.Array = copy_to_slots(tokens[None], layout.slot, layout.source)[0, 0]  # [R, D]
    with jax.named_scope("products"):
        if blocks:
            buffer = blocked(buffer, layout.starts, layout.sizes, weights, bias_form)
        else:
            buffer = grouped(buffer, layout.sizes, weights, bias_form)
        buffer = keep(PRODUCT, buffer)
    with jax.named_scope("combine"):
        y = combine(buffer[None, None], gates[None], layout.slot, layout.source)[0]  # [T, D]
    if axes:
        y = keep(EXCHANGED, lax.psum_scatter(y.reshape(parts, -1, y.shape[-1]), axes))
    return y
