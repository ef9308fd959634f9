"""Sending rows to the other devices of a mesh axis, to each as many as are for it.

Letters: n devices along the axis, s slices of rows between two of them, N and M rows of the buffers
before and after, D width.

On a TPU this is the operation of that name (`jax.lax.ragged_all_to_all`), which sends what the
slices hold and nothing else. XLA has it for no CPU, and for no slice of TPU v5e of more than 16
chips (`trainlib.chips.reaches_all`): there, each device fills a
packet of one size for each other, and receives as many. On GPUs packets are sent too, because the
operation was not tried there.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainlib.chips import reaches_all
from trainlib.sharding.constrain import device_kind, platform

_LANES, _TILE = 128, 8 * 128  # a row of such a width fills whole tiles on its own


class Slices(NamedTuple):
    """What one device sends to the others, or receives from them: s slices for each.

    Attributes:
      starts: int32 [n, s], the first row of each slice on this device.
      sizes: int32 [n, s], its rows.
      there: int32 [n, s], its first row on the other device.
    """

    starts: jax.Array
    sizes: jax.Array
    there: jax.Array


def is_ragged() -> bool:
    """Whether rows are sent as they are, without packets, in the program that is being traced."""
    if platform() != "tpu":
        return False
    return reaches_all(device_kind(), jax.sharding.get_abstract_mesh().size)


@dataclasses.dataclass(frozen=True)
class Way:
    """What is known of an exchange when compiling.

    Attributes:
      axis: name of the mesh axis.
      before: N, rows of the buffer that is sent from.
      after: M, rows of the result.
      most: rows that one device sends to another at the most.
    """

    axis: str
    before: int
    after: int
    most: int

    @property
    def back(self) -> Way:
        """The way of the cotangents."""
        return Way(self.axis, self.after, self.before, self.most)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def exchange(rows: jax.Array, send: Slices, receive: Slices, way: Way) -> jax.Array:
    """Sends slices of rows; in a shard_map over the axis.

    What a device sends to another in slice i is what the other receives from it in slice i: their
    sizes are equal, and `there` of the one is `starts` of the other. No row is sent twice.

    Args:
      rows: [N, D].
      send: slices of `rows`.
      receive: slices of the result, which do not overlap.
      way: see `Way`.

    Returns:
      [M, D]; rows that nobody sent are zero.
    """
    return _send(rows, send, receive, way)


def _exchange_forward(rows, send, receive, way):
    return _send(rows, send, receive, way), (send, receive)


def _exchange_backward(way, slices, dy):
    send, receive = slices
    return _send(dy, receive, send, way.back), None, None


exchange.defvjp(_exchange_forward, _exchange_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def spread(rows: jax.Array, send: Slices, receive: Slices, way: Way) -> jax.Array:
    """As `exchange`, where each device sends the same slices of its rows to all."""
    return _send(rows, send, receive, way)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def collect(rows: jax.Array, send: Slices, receive: Slices, way: Way) -> jax.Array:
    """The transpose of `spread`: each device gets back what all made of its rows, added up.

    Args:
      rows: [M, D].
      send: as in `spread`, which are slices of the result here.
      receive: as in `spread`, which are slices of `rows` here.
      way: as in `spread`, from N to M rows.

    Returns:
      [N, D] in the type of `rows`; the sum is taken in float32.
    """
    count = lax.axis_size(way.axis)
    # What comes from each device lies apart until it is added.
    apart = jnp.arange(count, dtype=jnp.int32)[:, None] * way.before
    mine = lax.axis_index(way.axis) * way.before
    home = Slices(send.starts + apart, send.sizes, send.there)
    away = Slices(receive.starts, receive.sizes, receive.there + mine)
    into = Way(way.axis, way.after, count * way.before, way.most)
    parts = _send(rows, away, home, into).reshape(count, way.before, -1)
    return jnp.sum(parts, axis=0, dtype=jnp.float32).astype(rows.dtype)


def _spread_forward(rows, send, receive, way):
    return spread(rows, send, receive, way), (send, receive)


def _spread_backward(way, slices, dy):
    return collect(dy, *slices, way), None, None


def _collect_forward(rows, send, receive, way):
    return collect(rows, send, receive, way), (send, receive)


def _collect_backward(way, slices, dy):
    return spread(dy, *slices, way), None, None


spread.defvjp(_spread_forward, _spread_backward)
collect.defvjp(_collect_forward, _collect_backward)


def _send(rows: jax.Array, send: Slices, receive: Slices, way: Way) -> jax.Array:
    """See `exchange`."""
    if not is_ragged():
        return _in_packets(rows, send, receive, way)
    width = rows.shape[1]
    # Rows that are whole tiles are sent, and their place is filled with zeros, tile by tile.
    inner = (width // _LANES, _LANES) if width % _TILE == 0 else (width,)
    starts, sizes, there = (numbers.reshape(-1) for numbers in send)
    y = lax.ragged_all_to_all(
        rows.reshape(-1, *inner),
        jnp.zeros((way.after, *inner), rows.dtype),
        starts,
        sizes,
        there,
        receive.sizes.reshape(-1),
        axis_name=way.axis,
    )
    return y.reshape(way.after, width)


def _in_packets(rows: jax.Array, send: Slices, receive: Slices, way: Way) -> jax.Array:
    """The same by an all-to-all of packets of `most` rows."""
    out_of = _places(send, way.most, way.before)  # [n, most]
    packets = jnp.take(rows, out_of, axis=0, mode="fill", fill_value=0)  # [n, most, D]
    arrived = lax.all_to_all(packets, way.axis, 0, 0, tiled=True).reshape(-1, rows.shape[1])
    into = _places(receive, way.most, way.after).reshape(-1)
    # Numbers are scattered, rows are gathered.
    source = jnp.full((way.after,), len(arrived), jnp.int32)
    source = source.at[into].set(jnp.arange(len(arrived), dtype=jnp.int32), mode="drop")
    return jnp.take(arrived, source, axis=0, mode="fill", fill_value=0)


def _places(slices: Slices, most: int, none: int) -> jax.Array:
    """int32 [n, most]: the row of each place in the packet for or from each device; `none` where
    the packet is not full.
    """
    ends = jnp.cumsum(slices.sizes, axis=1)  # [n, s]
    place = jnp.arange(most, dtype=jnp.int32)
    which = jnp.sum(place[:, None] >= ends[:, None], axis=-1)  # [n, most], s after the last slice
    first = slices.starts - (ends - slices.sizes)
    row = jnp.take_along_axis(first, jnp.minimum(which, ends.shape[1] - 1), axis=1) + place
    return jnp.where(which < ends.shape[1], row, none)
