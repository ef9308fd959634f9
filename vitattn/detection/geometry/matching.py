"""Which box each anchor has to find: the targets of a RetinaNet.

Letters: N anchors, M rows of boxes of an image, of which some are padding.

By intersection over union (IoU) an anchor goes to the box that it overlaps most, as a positive from
`foreground` on; below `background` it is background; between the two it is ignored and takes no
part in the loss. With `force`, the best anchor of each box is a positive of this box, however small
the IoU and whatever else the anchor overlaps, as `force_match_for_each_row` of the public TPU code
has it (torchvision gives the anchor to the box that the anchor overlaps most instead, which can
leave the other one without any). Of several boxes with one best anchor the one of the highest IoU
gets it, of equal ones the first. The others keep what they have above `foreground`; where that is
nothing, the box counts in `Matched.missed`, which training reports: no public code tries a second
anchor, whose overlap with such a box would be smaller still than that of one which overlaps another
box more.

Two passes over M x N overlaps, neither of which is kept: one for each box's best anchor, fused by
the compiler, and a loop over boxes that holds the best so far of each anchor.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vitattn.detection.geometry import boxes as box_math

BACKGROUND = -1  # class of an anchor that has to find nothing
IGNORED = -2  # class of an anchor that takes no part
FORCED = 2.0  # ranks a forced match above every overlap
UNROLLED = (
    5  # boxes that a round of the loop looks at: what is kept of N anchors moves once for them
)


class Matched(NamedTuple):
    """What the anchors of an image have to find.

    Attributes:
      classes: i32 [N], the class of the box, BACKGROUND or IGNORED.
      boxes: f32 [N, 4], offsets of the box from the anchor; 0 where not positive.
      positive: bool [N].
      missed: i32 scalar, boxes that got no anchor.
    """

    classes: jax.Array
    boxes: jax.Array
    positive: jax.Array
    missed: jax.Array


def match(
    anchors: jax.Array,
    boxes: jax.Array,
    classes: jax.Array,
    *,
    foreground: float,
    background: float,
    force: bool = True,
) -> Matched:
    """Gives each anchor its box.

    Args:
      anchors: f32 [N, 4].
      boxes: f32 [M, 4] of one image.
      classes: i32 [M]; below 0 is padding, which never matches. Nor do boxes with a side that is
        not positive, or not a number: they have no overlap, and no logarithm.
      foreground: IoU from which an anchor is positive.
      background: IoU below which an anchor is background; at most `foreground`.
      force: whether each box gets its best anchor in any case.
    """
    valid = (classes >= 0) & jnp.all(boxes[:, 2:] > boxes[:, :2], -1) & jnp.isfinite(boxes).all(-1)
    boxes = jnp.where(valid[:, None], boxes, 0.0)  # empty: overlaps nothing
    forced = _best_anchors(anchors, boxes) if force else jnp.full(valid.shape, -1)
    best = _best_boxes(anchors, boxes, classes, forced)
    positive = (best.rank >= foreground) & (best.rank > 0)
    kind = jnp.where(best.rank >= background, IGNORED, BACKGROUND)
    target = jnp.where(positive, jnp.stack(best.box), anchors.T).T
    has_anchor = jnp.any(positive & (best.row == jnp.arange(len(boxes))[:, None]), axis=1)
    return Matched(
        jnp.where(positive, best.kind, kind),
        box_math.encode(target, anchors),
        positive,
        jnp.sum(valid & ~has_anchor, dtype=jnp.int32),
    )


def _best_anchors(anchors: jax.Array, boxes: jax.Array) -> jax.Array:
    """The anchor that each box is forced on, i32 [M]; -1 where it overlaps none, or loses it."""
    best = jnp.argmax(box_math.iou(boxes, anchors), axis=-1)  # [M]
    overlap = box_math.overlap(boxes, anchors[best])
    number = jnp.arange(len(boxes))
    better = (overlap > overlap[:, None]) | (
        (overlap == overlap[:, None]) & (number < number[:, None])
    )
    lost = jnp.any(better & (best == best[:, None]), axis=-1)
    return jnp.where(lost | (overlap <= 0), -1, best)


class _Best(NamedTuple):
    """The best box so far of each anchor, [N] each: its rank, number, class, and edges."""

    rank: jax.Array
    row: jax.Array
    kind: jax.Array
    box: tuple[jax.Array, ...]


def _best_boxes(
    anchors: jax.Array, boxes: jax.Array, classes: jax.Array, forced: jax.Array
) -> _Best:
    """The box of each anchor by overlap, or the one forced on it.

    Edges and class travel with the rank. To look them up by number afterwards would be a gather of
    N rows, which takes a TPU longer than all the rest. Edges are vectors: an array [N, 4] lies
    there in tiles of 128 columns.
    """
    number, edges = jnp.arange(len(anchors)), anchors.T

    def look(row: jax.Array, best: _Best) -> _Best:
        box = tuple(boxes[row])
        rank = box_math.overlap_of_edges(box, tuple(edges))
        rank = jnp.where(number == forced[row], FORCED, rank)
        here = _Best(rank, row, classes[row], box)
        return jax.tree.map(lambda new, old: jnp.where(rank > best.rank, new, old), here, best)

    zero = jnp.zeros(number.shape)
    start = _Best(zero, jnp.full_like(number, -1), jnp.zeros_like(number), (zero,) * 4)
    return jax.lax.fori_loop(0, len(boxes), look, start, unroll=UNROLLED)
