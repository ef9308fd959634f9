"""Tokens to slots of their experts and back, on one device or inside a shard_map over a mesh.

Letters: D model width, F hidden width of an expert, E experts, K choices, G groups, S tokens of a
group, C capacity (slots of one expert for one group), N slots of an expert; in a shard_map all of
them are the parts of one device, and n and m are the numbers of parts of the experts and of their
hidden width.

Over a mesh the tokens travel in chunks: while one is computed, the next is on its way, and so is
what was made of the one before. Chunks depend on nothing of each other, so that the compiler orders
them; on a TPU it makes all-to-alls asynchronous where it is told to
(`trainlib.sharding.compiler.options`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from moe.kernels.batched import Weights, batched
from moe.kernels.int8 import in_type
from moe.kernels.tiled import fits, tiled
from moe.routing.dispatch import combine, copy_to_slots
from moe.routing.placement import Placement
from moe.routing.route import Routing
from trainlib.errors import ConfigError
from trainlib.model.remat import EXCHANGED, keep
from trainlib.sharding.constrain import platform
from trainlib.sharding.kernels import kernel_mode

_CHUNKS = 4  # of which three quarters travel while others are computed, and no more are needed
_LEAST = 2**20  # bytes of a chunk: less takes as long to set out as to arrive
_SUBLANES = 8  # slots that lie in one tile


def chunks(asked: int, buffer: tuple[int, ...], size: int, placement: Placement) -> int:
    """In how many pieces a buffer is exchanged; see `RoutingConfig.exchange_chunks`.

    Args:
      asked: 0 chooses.
      buffer: [E, G, C, D], its shape.
      size: bytes of an element.
      placement: the mesh axes.

    Raises:
      ConfigError: neither groups nor slots can be cut so.
    """
    _, groups, slots, _ = buffer
    if placement.automatic or not (placement.expert_axis or placement.mlp_axis):
        return 1
    if asked:
        if groups % asked and slots % asked:
            raise ConfigError(
                f"routing.exchange_chunks={asked} divides neither the {groups} groups of a device "
                f"nor the {slots} slots that an expert has for each. Use 0, which chooses."
            )
        return asked
    if platform() != "tpu" or placement.mlp_axis:
        # Over columns too the core waits for gathers, of chunks as of the whole (libtpu 0.0.42).
        return 1
    most = min(2 * _CHUNKS, math.prod(buffer) * size // _LEAST)
    fitting = [n for n in range(1, most + 1) if not groups % n or not slots % (n * _SUBLANES)]
    return min(fitting, key=lambda n: abs(n - _CHUNKS), default=1)


def with_capacity(
    x: jax.Array,
    routed: Routing,
    weights: Weights,
    bias_form: str,
    hidden_scale: jax.Array | None,
    placement: Placement,
    asked: int = 0,
) -> jax.Array:
    """Each expert computes C slots for each group.

    Args:
      x: [G, S, D].
      routed: of these tokens.
      weights: of the experts, see `moe.kernels.int8.in_type`.
      bias_form: see `moe.kernels.batched`.
      hidden_scale: [E, G, C, F] factor of the hidden vectors (dropout), or None.
      placement: the mesh axes.
      asked: `RoutingConfig.exchange_chunks`.

    Returns:
      [G, S, D] in the type of x.
    """
    shape = (*routed.source.shape, x.shape[-1])
    count = chunks(asked, shape, x.dtype.itemsize, placement)
    if hidden_scale is not None:
        hidden_scale = _by_device(hidden_scale, placement)
    by_groups = shape[1] % count == 0
    of = _pieces(shape[1 if by_groups else 2], count)
    scales = [None] * count
    if hidden_scale is not None:
        scales = [
            hidden_scale[:, :, :, one] if by_groups else hidden_scale[..., one, :] for one in of
        ]
    exchanged = functools.partial(
        _exchanged, scales=scales, weights=weights, bias_form=bias_form, placement=placement
    )
    if by_groups:
        return _in_groups(x, routed, of, exchanged)
    with jax.named_scope("dispatch"):
        buffer = copy_to_slots(x, routed.slot, routed.source)  # [E, G, C, D]
    returned = exchanged([buffer[:, :, one] for one in of])
    with jax.named_scope("combine"):
        whole = jnp.concatenate(returned, axis=2)
        return combine(whole, routed.gates, routed.slot, routed.source)


def _in_groups(
    x: jax.Array, routed: Routing, of: Sequence[slice], exchanged: Callable
) -> jax.Array:
    """The layer in pieces of whole groups, each dispatched and combined on its own."""
    slots = [routed.slot[one] for one in of]
    sources = [routed.source[:, one] for one in of]
    with jax.named_scope("dispatch"):
        buffers = [
            copy_to_slots(x[one], slot, source)  # [E, G, C, D]
            for one, slot, source in zip(of, slots, sources, strict=True)
        ]
    returned = exchanged(buffers)
    with jax.named_scope("combine"):
        done = [
            combine(buffer, routed.gates[one], slot, source)
            for one, buffer, slot, source in zip(of, returned, slots, sources, strict=True)
        ]
        return jnp.concatenate(done) if len(of) > 1 else done[0]


def _pieces(size: int, count: int) -> list[slice]:
    if count == 1:  # of any size, known or not (`jax.export`)
        return [slice(None)]
    step = size // count
    return [slice(first, first + step) for first in range(0, size, step)]


def _exchanged(
    buffers: Sequence[jax.Array],
    *,
    scales: Sequence[jax.Array | None],
    weights: Weights,
    bias_form: str,
    placement: Placement,
) -> list[jax.Array]:
    """Buffers [E, G, C, D] of this device's tokens to the experts and back.

    Args:
      buffers: one for each chunk.
      scales: of each, as `_by_device` leaves them.
      weights: see `with_capacity`.
      bias_form: see `with_capacity`.
      placement: see `with_capacity`.
    """
    made = []
    for n, (buffer, scale) in enumerate(zip(buffers, scales, strict=True)):
        if n > 1:
            # A chunk sets out when the last but one is computed, and in the backward pass that one
            # starts when the gradient of this is home. Left to itself the compiler fetches all
            # first, and then only what goes back has something to travel beside.
            buffer, made[n - 2] = lax.optimization_barrier((buffer, made[n - 2]))
        arrived = keep(EXCHANGED, _to_experts(buffer, placement))  # [E/n, G*n, C, D]
        made.append(_computed(arrived, scale, weights, bias_form, placement))
    return [keep(EXCHANGED, _from_experts(one, placement)) for one in made]


def _computed(
    arrived: jax.Array,
    hidden_scale: jax.Array | None,
    weights: Weights,
    bias_form: str,
    placement: Placement,
) -> jax.Array:
    """What the experts make of what arrived, [E/n, G*n, C, D]."""
    experts, _, _, width = arrived.shape
    ready = arrived.reshape(experts, -1, width)  # [E/n, N, D]
    axis = placement.mlp_axis
    if axis:
        # The parts lead: scattering over another dimension compiles to a whole all-reduce.
        gathered = _in_order(lax.all_gather(ready, axis))
        ready = gathered.swapaxes(0, 1).reshape(experts, -1, width)
    if hidden_scale is not None:
        hidden_scale = hidden_scale.reshape(experts, -1, hidden_scale.shape[-1])  # [E/n, N, F]
    with jax.named_scope("products"):
        mode = None if placement.automatic else kernel_mode()
        if mode and fits(ready, weights):
            out: jax.Array = tiled(ready, weights, hidden_scale, mode == "interpret")
        else:
            out = batched(ready, in_type(weights, arrived.dtype), bias_form, hidden_scale)
    if axis:
        parts = out.reshape(experts, placement.size(axis), -1, width).swapaxes(0, 1)
        out = lax.psum_scatter(_in_order(parts), axis)
    return out.reshape(arrived.shape)


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


def _by_device(scale: jax.Array, placement: Placement) -> jax.Array:
    """[E/n, G, C, F] in the order of the global batch -> [E/n, m, n, G, C, F], with the groups of
    one device: the order in which slots arrive.
    """
    experts, groups, slots, width = scale.shape
    over_experts = placement.size(placement.expert_axis)
    over_mlp = placement.size(placement.mlp_axis)
    own = groups // (over_experts * over_mlp)
    scale = scale.reshape(experts, over_experts, over_mlp, own, slots, width)
    return scale.swapaxes(1, 2)
