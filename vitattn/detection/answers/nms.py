"""Class-wise non-maximum suppression of a batch, exact, in operations of static shape.

B images of a batch, N candidates of an image, K detections that are kept of them.

The greedy rule takes the best candidate that is left and strikes out those of its class that
overlap it, over and over. Only K are wanted, 100 of 5,000 as a rule: so the rule itself, K times
"find the best, strike out", costs K * N comparisons, where a matrix of overlaps has N * N, 100 MB
an image. A candidate is compared with each pick by its class number: classes neither need rounds
of their own nor boxes that are moved apart, which costs their coordinates precision.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainlib.sharding.kernels import kernel_mode
from vitattn.detection.answers import nms_tpu

Array = jax.Array


class _Left(NamedTuple):
    """The state between two picks: how many were made, the candidates' keys, and the picks."""

    step: Array  # i32
    keys: Array  # f32 [B, N]; -inf for what is picked or struck out
    picks: Array  # i32 [B, K]; -1 for none


def greedy_nms(boxes: Array, keys: Array, classes: Array, *, iou: float, most: int) -> Array:
    """Returns the candidates that class-wise non-maximum suppression keeps, the best first.

    The best is the one of the highest key; of equal keys the one that stands first. A NaN
    counts as +inf. A candidate is struck out if a better one that
    was kept has the same class and `intersection > iou * union`; boxes without area, and boxes
    with a NaN, strike out nothing and are never struck out. The comparison has no division, so that
    every platform rounds it alike.

    Args:
      boxes: f32 [B, N, 4], y0 x0 y1 x1.
      keys: f32 [B, N]; higher is better. -inf stands for no candidate.
      classes: i32 [B, N].
      iou: intersection over union, above which two boxes are one object.
      most: K.

    Returns:
      i32 [B, K], numbers of candidates; -1 behind the last that is kept.
    """
    # Each side is an array of its own, so that the N candidates lie along the lanes of a TPU.
    top, left, bottom, right = sides = tuple(boxes[..., side] for side in range(4))
    area = (bottom - top) * (right - left)
    ranked = jnp.where(jnp.isnan(keys), jnp.inf, keys)
    mode = kernel_mode()
    if mode is not None and isinstance(keys.shape[0], int) and keys.shape[1] <= nms_tpu.LARGEST:
        fields = (*sides, area, classes)
        interpret = mode == "interpret"
        return nms_tpu.picks(fields, ranked, iou=iou, most=most, interpret=interpret)
    number = lax.broadcasted_iota(jnp.int32, keys.shape, 1)

    def unfinished(now: _Left) -> Array:
        return (now.step < most) & jnp.any(now.keys > -jnp.inf)

    def pick(now: _Left) -> _Left:
        best = now.keys.max(1, keepdims=True)
        first = jnp.where(now.keys == best, number, number.shape[1]).min(1, keepdims=True)
        chosen = number == first

        def of_chosen(values: Array) -> Array:
            return jnp.where(chosen, values, 0).sum(1, keepdims=True)

        y0, x0, y1, x1 = map(of_chosen, sides)
        height = jnp.maximum(jnp.minimum(bottom, y1) - jnp.maximum(top, y0), 0)
        width = jnp.maximum(jnp.minimum(right, x1) - jnp.maximum(left, x0), 0)
        shared = height * width
        struck = shared > iou * (area + of_chosen(area) - shared)
        gone = chosen | (struck & (classes == of_chosen(classes)))
        found = jnp.where(best > -jnp.inf, first, -1)
        picks = lax.dynamic_update_slice(now.picks, found, (0, now.step))
        return _Left(now.step + 1, jnp.where(gone, -jnp.inf, now.keys), picks)

    picks = jnp.full((keys.shape[0], most), -1, jnp.int32)
    return lax.while_loop(unfinished, pick, _Left(jnp.int32(0), ranked, picks)).picks
