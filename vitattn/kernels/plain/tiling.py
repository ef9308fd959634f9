"""Loops around `attend`: images in chunks, and within a chunk tiles of groups and queries.

Dimension letters: B images, G groups (image, head and block, in any mix), Q queries, KH KW rows and
columns of keys, d e key and value width.

On a CPU the logits of one tile should stay in the cache, and what a tile reads (position terms,
keys with their halo) should lie in memory before its loop begins, or XLA rebuilds it, element by
element, inside the loops over logits. So a chunk holds at least two tiles. An accelerator wants
few, large tiles and is bounded by its memory only: of 64 million logits each operation takes some
ten times what it takes to start it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from trainlib.sharding.constrain import platform
from vitattn.kernels.plain.attend import attend, keep_outputs

Array = jax.Array

CPU_TILE_BYTES = 3 << 19
ACCELERATOR_TILE_BYTES = 1 << 28


def tile_bytes() -> int:
    """Bytes of float32 logits that one tile may have on the platform that is traced for."""
    return CPU_TILE_BYTES if platform() == "cpu" else ACCELERATOR_TILE_BYTES


def largest_divisor(number: int, limit: float) -> int:
    """The largest divisor of `number` that is at most `limit` (at least 1)."""
    return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(1, limit))


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Images of a chunk, and groups and query steps of a tile; divisors of what they divide."""

    images: int
    groups: int
    steps: int


def plan(images: int, groups: int, steps: int, step_bytes: int) -> Tiles:
    """Chooses the tiles by the size of their logits.

    Args:
      images: B.
      groups: G of one image.
      steps: units (map rows, say) into which the queries of a group may be cut.
      step_bytes: float32 logits of one step of one group.
    """
    limit, image_bytes = tile_bytes(), groups * steps * step_bytes
    if image_bytes > limit:
        tile_groups = largest_divisor(groups, limit // step_bytes)
        return Tiles(1, tile_groups, largest_divisor(steps, limit // (tile_groups * step_bytes)))
    # A program for any batch (`jax.export`) takes one image after the other.
    chunk = largest_divisor(images, 2 * limit // image_bytes) if isinstance(images, int) else 1
    if platform() == "cpu":
        limit = min(limit, chunk * image_bytes // 2)
    return Tiles(chunk, largest_divisor(chunk * groups, limit // (steps * step_bytes)), steps)


def map_images(body: Callable, xs: tuple[Array, ...], tiles: Tiles) -> Array:
    """`body` over chunks of images; only outputs and logsumexps are residuals of the loop."""
    return serial_map(body, xs, tiles.images, keep_outputs)


def serial_map(
    body: Callable, xs: tuple[Array, ...], size: int, wrap: Callable = lambda body: body
) -> Array:
    """A loop of `wrap(body)` over `size` entries of the leading axis at a time."""
    count = xs[0].shape[0]
    if size == count:
        return wrap(body)(xs)
    if size == 1:
        # An axis of 1 in front of a loop costs a copy of everything: XLA gives it another layout.
        return jax.lax.map(wrap(lambda xs: body(tuple(x[None] for x in xs))[0]), xs)
    parts = tuple(x.reshape(count // size, size, *x.shape[1:]) for x in xs)
    out = jax.lax.map(wrap(body), parts)
    return out.reshape(count, *out.shape[2:])


def attend_tiled(
    q: Array, k: Array, v: Array, bias: tuple[Array, ...], tiles: Tiles, step: int
) -> Array:
    """`attend` over tiles of some groups and some queries.

    Args:
      q: [G, Q, d].
      k: [G, KH*KW, d].
      v: [G, KH*KW, e].
      bias: row terms [G, KH, Q] and column terms [G, KW, Q], or nothing; after them perhaps what
        other keys add up to, [G, 1, Q] (`attend`).
      tiles: sizes of a tile.
      step: queries of one step.

    Returns:
      [G, Q, e].
    """

    def some_groups(inputs: tuple[Array, ...]) -> Array:
        q, k, v, *bias = inputs
        count = q.shape[1] // (tiles.steps * step)
        if count == 1:
            return attend(q, k, v, *bias)
        q = q.reshape(q.shape[0], count, -1, q.shape[2]).swapaxes(0, 1)
        bias = [b.reshape(*b.shape[:2], count, -1).transpose(2, 0, 1, 3) for b in bias]
        out = jax.lax.map(lambda xs: attend(xs[0], k, v, *xs[1:]), (q, *bias))
        return out.swapaxes(0, 1).reshape(k.shape[0], -1, v.shape[2])

    return serial_map(some_groups, (q, k, v, *bias), tiles.groups)
