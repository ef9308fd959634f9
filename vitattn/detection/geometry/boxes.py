"""Boxes: area, overlap, and offsets from anchors.

A box is f32 [.., 4] = (y0, x0, y1, x1), pixels of the network's image, edges continuous: a width is
x1 - x0. Letters: M, N boxes of two sets; `..` are any leading dimensions, which broadcast.

Offsets of a box from an anchor with centre (cy, cx) and sides (h, w) are (ty, tx, th, tw) with
ty = (box cy - cy) / h, th = log(box h / h), and x, w alike: the coder of Faster R-CNN (arXiv
1506.01497, equation 2) without scale factors, as torchvision and the public TPU code have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# What a side may grow by from its anchor, as a logarithm: an untrained network would overflow exp.
# The figure is torchvision's, of an anchor of 16 pixels in an image of 1,000.
MOST_GROWTH = math.log(1000 / 16)


def area(boxes: jax.Array) -> jax.Array:
    """Boxes [.., 4] -> areas [..]; 0 where a side is not positive."""
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), axis=-1)


def overlap(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of a [.., 4] with b [.., 4], row by row -> [.., ] in [0, 1].

    0 where both are empty.
    """
    return overlap_of_edges(tuple(jnp.moveaxis(a, -1, 0)), tuple(jnp.moveaxis(b, -1, 0)))


def overlap_of_edges(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    """`overlap` of boxes given as four arrays (y0, x0, y1, x1) of shapes that broadcast."""
    areas = [jnp.maximum(y1 - y0, 0.0) * jnp.maximum(x1 - x0, 0.0) for y0, x0, y1, x1 in (a, b)]
    height = jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0])
    width = jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1])
    common = jnp.maximum(height, 0.0) * jnp.maximum(width, 0.0)
    union = areas[0] + areas[1] - common
    return jnp.where(union > 0, common / jnp.where(union > 0, union, 1.0), 0.0)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of each of a [.., M, 4] with each of b [.., N, 4] -> [.., M, N]."""
    return overlap(a[..., :, None, :], b[..., None, :, :])


def clip(boxes: jax.Array, height: jax.Array | float, width: jax.Array | float) -> jax.Array:
    """Boxes [.., 4] cut to an image of height x width, scalars or [..]."""
    limits = jnp.stack(jnp.broadcast_arrays(*map(jnp.asarray, (height, width, height, width))), -1)
    return jnp.clip(boxes, 0.0, limits.astype(boxes.dtype))


def encode(boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """Boxes [.., 4] with positive sides -> their offsets [.., 4] from anchors [.., 4].

    A side of 0 gives -inf, and one of less NaN: `matching.match` lets no such box through.
    """
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    growth = jnp.log((boxes[..., 2:] - boxes[..., :2]) / sides)
    return jnp.concatenate((centres / sides, growth), axis=-1)


def decode(offsets: jax.Array, anchors: jax.Array) -> jax.Array:
    """Offsets [.., 4] from anchors [.., 4] -> boxes [.., 4]; sides grow by 62.5 at most.

    The boxes are not clipped to the image.
    """
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2 + offsets[..., :2] * sides
    half = jnp.exp(jnp.minimum(offsets[..., 2:], MOST_GROWTH)) * sides / 2
    return jnp.concatenate((centres - half, centres + half), axis=-1)
