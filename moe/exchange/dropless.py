"""Experts without capacity: every choice that is sent is computed, on one device or over a mesh.

Letters: D model width, E experts, K choices, G groups, S tokens of a group, T tokens (all of a
device), R slots of a buffer; in a shard_map all of them are the parts of one device. n parts of the
experts lie over mesh rows, of e experts each, and m parts of their hidden width over columns.

Over a mesh, each device sorts its choices by expert and sends each row to the device that has the
expert, where it lands behind the rows of the same expert from other devices: nothing is sorted
there. All devices know how many choices each of them has for each expert, int32 [n, E], and from
that where every row lies. Columns then share what has arrived, compute their part of the hidden
width, and add up. The way back is the same with sender and receiver exchanged.

    sorted [T K, D] -> rows to their experts -> shared among columns -> experts
      -> summed over columns -> rows back -> combine

How many rows a device receives is for the router to say, and could be all of them. Its buffers have
room for `routing.dropless_room` times what it receives when all experts are equally busy. What does
not fit comes in further rounds, whose number is computed in every step: they cost time, and
memory for one more round at the most, and no token.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.exchange.ragged import Slices, Way, collect, exchange, is_ragged, spread
from moe.kernels.batched import Weights
from moe.kernels.blocked import ALIGN, blocked, room
from moe.kernels.grouped import TILE, grouped
from moe.kernels.int8 import in_type
from moe.routing.config import RoutingConfig
from moe.routing.dispatch import combine, copy_to_slots
from moe.routing.placement import Placement
from moe.routing.route import Routing
from moe.routing.slots import segments
from trainlib.model.remat import EXCHANGED, PRODUCT, keep
from trainlib.sharding.kernels import kernel_mode


def dropless(
    x: jax.Array,
    routed: Routing,
    weights: Weights,
    routing: RoutingConfig,
    bias_form: str,
    placement: Placement,
) -> jax.Array:
    """Every choice that is sent is computed.

    Args:
      x: [G, S, D].
      routed: of these tokens.
      weights: of the experts of this device, see `moe.kernels.int8.in_type`.
      routing: chooses the kernel and the room.
      bias_form: see `moe.kernels.batched`.
      placement: the mesh axes.

    Returns:
      [G, S, D] in the type of x.
    """
    weights = in_type(weights, x.dtype)
    tokens = x.reshape(-1, x.shape[-1])  # [T, D] with T = G * S
    gates, expert = (v.reshape(len(tokens), -1) for v in (routed.gates, routed.expert))  # [T, K]
    kernel = _Kernel(routing.dispatch, bias_form)
    over_mesh = placement.expert_axis or placement.mlp_axis
    experts, most = routing.num_experts, min(expert.size, routed.source.size)
    align, slots = (1, expert.size) if over_mesh else (kernel.align, kernel.room(most, experts))
    layout = segments(expert, experts, align, slots)
    with jax.named_scope("dispatch"):
        rows: jax.Array = copy_to_slots(tokens[None], layout.slot, layout.source)[0, 0]  # [R, D]
    if over_mesh:
        rows = _over_mesh(rows, layout.sizes, weights, routing, kernel, placement, expert.shape)
    else:
        rows = kernel(rows, layout.starts, layout.sizes, weights)
    with jax.named_scope("combine"):
        y = combine(rows[None, None], gates[None], layout.slot, layout.source)[0]  # [T, D]
    return y.reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """How experts compute segments of sorted rows."""

    dispatch: str
    bias_form: str

    @property
    def align(self) -> int:
        """A segment starts at a multiple of it."""
        return ALIGN if self.dispatch == "dropless" else 1

    def room(self, rows: int, experts: int) -> int:
        """Rows of a buffer for so many of so many experts."""
        return room(rows, experts) if self.dispatch == "dropless" else -(-rows // TILE) * TILE

    @jax.named_scope("products")
    def __call__(
        self, rows: jax.Array, starts: jax.Array, sizes: jax.Array, weights: Weights
    ) -> jax.Array:
        if self.dispatch == "dropless":
            y: jax.Array = blocked(rows, starts, sizes, weights, self.bias_form)
        else:
            interpret = kernel_mode() == "interpret"
            y = grouped(rows, sizes, weights, self.bias_form, interpret=interpret)
        return keep(PRODUCT, y)


@dataclasses.dataclass(frozen=True)
class Window:
    """What is exchanged in one round.

    Attributes:
      rows: so many of what one device receives or, with `by_pair`, of what it receives from each.
      by_pair: rows are sent in packets, and the largest decides.
      pair: rows that one device sends to another in a round, at the most.
      arriving: rows that one device receives in a round, at the most.
    """

    rows: int
    by_pair: bool
    pair: int
    arriving: int


def window(choices: int, most: int, parts: int, room: float, *, by_pair: bool) -> Window:
    """The window of a layer.

    Args:
      choices: T * K of one device.
      most: of them, for another device: at most one for each of its experts and each token.
      parts: n.
      room: `RoutingConfig.dropless_room`.
      by_pair: see `Window`.
    """
    if by_pair:
        rows = min(most, math.ceil(room * choices / parts))
        return Window(rows, by_pair, rows, parts * rows)
    rows = min(parts * most, math.ceil(room * choices))
    return Window(rows, by_pair, min(most, rows), rows)


class Share(NamedTuple):
    """What of all choices is exchanged in one round, int32 [n, n, e] by source, device and expert.

    Attributes:
      skipped: choices that rounds before took.
      taken: choices of this round.
    """

    skipped: jax.Array
    taken: jax.Array


def share(counts: jax.Array, of: Window, number: jax.Array | int) -> Share:
    """The choices of a round.

    Args:
      counts: int32 [n, n, e], choices by source, device and expert.
      of: rows of a round.
      number: of the round, from 0.
    """
    # Rows before those of an expert from a source: of the pair, or of all that a device receives.
    order = (0, 1, 2) if of.by_pair else (1, 2, 0)
    apart = 2 if of.by_pair else 1  # dimensions that are counted on their own
    turned = counts.transpose(order)
    flat = turned.reshape(*turned.shape[:apart], -1)
    before = (jnp.cumsum(flat, axis=-1) - flat).reshape(turned.shape)
    back = tuple(order.index(axis) for axis in range(3))
    before = before.transpose(back)
    first, last = (jnp.clip((number + n) * of.rows - before, 0, counts) for n in (0, 1))
    return Share(first, last - first)


def rounds(counts: jax.Array, of: Window) -> jax.Array:
    """int32: how many are needed, as this device knows; see `share`."""
    load = jnp.sum(counts, axis=2 if of.by_pair else (0, 2))
    return jnp.max(-(-load // of.rows))


def placed(taken: jax.Array, align: int) -> tuple[jax.Array, jax.Array]:
    """Where rows arrive: by expert, and those of an expert by source.

    Args:
      taken: int32 [n, .., e], rows by source and expert.
      align: each expert starts at a multiple of it.

    Returns:
      int32: the first row of each source and expert [n, .., e], and of each expert [.., e].
    """
    sizes = jnp.sum(taken, axis=0)
    padded = -(-sizes // align) * align
    starts = jnp.cumsum(padded, axis=-1) - padded
    return starts + jnp.cumsum(taken, axis=0) - taken, starts


def routes(counts: jax.Array, chosen: Share, me: jax.Array | int, align: int):
    """The slices of device `me` in one round: (what it sends of its sorted rows, what arrives).

    Args:
      counts: int32 [n, n, e], choices by source, device and expert.
      chosen: of them, what this round exchanges.
      me: number of the device along the axis.
      align: see `placed`.
    """
    flat = counts.reshape(len(counts), -1)
    home = (jnp.cumsum(flat, axis=1) - flat).reshape(counts.shape) + chosen.skipped
    away, _ = placed(chosen.taken, align)  # [n, n, e]
    send = Slices(home[me], chosen.taken[me], away[me])
    return send, Slices(away[:, me], chosen.taken[:, me], home[:, me])


def _over_mesh(
    rows: jax.Array,
    sizes: jax.Array,
    weights: Weights,
    routing: RoutingConfig,
    kernel: _Kernel,
    placement: Placement,
    choices: tuple[int, ...],
) -> jax.Array:
    """Sorted rows [T K, D], `sizes` [E] of each expert -> what the experts make of them."""
    axis, experts = placement.expert_axis, weights["up"].shape[0]
    parts = placement.size(axis)
    counts = lax.all_gather(sizes, axis) if axis else sizes[None]
    counts = counts.reshape(parts, parts, experts)
    tokens, each = choices
    most = tokens * min(each, experts)
    of = window(
        tokens * each, most, parts, routing.dropless_room, by_pair=bool(axis) and not is_ragged()
    )
    layer = _Layer(kernel, placement, of)
    y = layer(rows, weights, counts, 0)
    if of.pair == most and of.arriving == parts * most:  # all fits, whatever the router says
        return y
    # Loops must turn equally often on devices that exchange rows in them, in columns too.
    number = lax.pmax(rounds(counts, of), placement.batch)
    return _further(layer, y, rows, weights, counts, number)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One round of the layer over a mesh."""

    kernel: _Kernel
    placement: Placement
    of: Window

    def __call__(
        self, rows: jax.Array, weights: Weights, counts: jax.Array, number: jax.Array | int
    ) -> jax.Array:
        """Sorted rows [T K, D] -> what the experts make of those of this round, zeros elsewhere."""
        axis, columns = self.placement.expert_axis, self.placement.mlp_axis
        chosen, experts = share(counts, self.of, number), counts.shape[2]
        align = 1 if columns else self.kernel.align
        me = lax.axis_index(axis) if axis else 0
        taken = chosen.taken[:, me]  # [n, e]
        _, starts = placed(taken, align)
        compute = self._over_columns if columns else self.kernel
        compute = functools.partial(
            compute, starts=starts, sizes=jnp.sum(taken, axis=0), weights=weights
        )
        if not axis:
            return compute(rows)
        send, receive = routes(counts, chosen, me, align)
        room = self.of.arriving if columns else self.kernel.room(self.of.arriving, experts)
        way = Way(axis, len(rows), room, self.of.pair)
        with jax.named_scope("exchange"):
            arrived: jax.Array = exchange(rows, send, receive, way)
        y = compute(keep(EXCHANGED, arrived))
        with jax.named_scope("exchange"):
            returned: jax.Array = exchange(y, receive, send, way.back)
        return keep(EXCHANGED, returned)

    def _over_columns(
        self, rows: jax.Array, starts: jax.Array, sizes: jax.Array, weights: Weights
    ) -> jax.Array:
        """Rows of this column, by expert -> what all columns together make of them."""
        axis = self.placement.mlp_axis
        count, experts = self.placement.size(axis), len(sizes)
        every = lax.all_gather(sizes, axis)  # [m, e]
        theirs = lax.all_gather(starts, axis)
        into, joined = placed(every, self.kernel.align)
        me = lax.axis_index(axis)
        mine = (jnp.broadcast_to(v, every.shape) for v in (starts, sizes, into[me]))
        send, receive = Slices(*mine), Slices(into, every, theirs)
        room = self.kernel.room(count * len(rows), experts)
        way = Way(axis, len(rows), room, len(rows))
        with jax.named_scope("columns"):
            shared: jax.Array = spread(rows, send, receive, way)
        y = self.kernel(keep(EXCHANGED, shared), joined, jnp.sum(every, axis=0), weights)
        with jax.named_scope("columns"):
            total: jax.Array = collect(y, send, receive, way)
        return keep(EXCHANGED, total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _further(
    layer: _Layer,
    y: jax.Array,
    rows: jax.Array,
    weights: Weights,
    counts: jax.Array,
    number: jax.Array,
) -> jax.Array:
    """Adds all rounds but the first to `y`; they are computed again in the backward pass."""

    def turn(n, y):
        return y + layer(rows, weights, counts, n)

    return lax.fori_loop(1, number, turn, y)


def _further_forward(layer, y, rows, weights, counts, number):
    return _further(layer, y, rows, weights, counts, number), (rows, weights, counts, number)


def _further_backward(layer, saved, dy):
    rows, weights, counts, number = saved

    def turn(n, total):
        _, pull = jax.vjp(lambda rows, weights: layer(rows, weights, counts, n), rows, weights)
        return jax.tree.map(jnp.add, total, pull(dy))

    zeros = jax.tree.map(jnp.zeros_like, (rows, weights))
    return dy, *lax.fori_loop(1, number, turn, zeros), None, None


_further.defvjp(_further_forward, _further_backward)
