"""What each number that a RetinaNet predicts has to be, level by level.

Letters: B images, M rows of boxes of an image, h w a map, A anchors of a location, N anchors of all
levels.

Matching sees the anchors of an image in a row, in the order level, anchor of the location, row,
column: cut to a level, that is [A, h w], of which a TPU makes the [h w, A] beside the predictions
by a transpose of tiles, where the order of the predictions themselves would have it take a row
apart six values at a time (0.4 ms of 8 images of 640 pixels for one level, as long as its loss).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vitattn.detection.geometry.anchors import level_anchors
from vitattn.detection.geometry.matching import IGNORED, Matched, match
from vitattn.models.retinanet.config import RetinaNetConfig


class LevelTargets(NamedTuple):
    """What is to be found on a level.

    Attributes:
      classes: i32 [B, h, w, A]: a class, or BACKGROUND or IGNORED of `matching`.
      boxes: f32 [B, h, w, A, 4], offsets from the anchors.
      positive: bool [B, h, w, A], anchors whose box counts.
    """

    classes: jax.Array
    boxes: jax.Array
    positive: jax.Array


class Targets(NamedTuple):
    """What is to be found in a batch.

    Attributes:
      levels: lowest level first.
      positives: f32 scalar, anchors that have a box.
      boxes: f32 scalar, boxes of the images that count.
      missed: f32 scalar, those of them that no anchor was given.
    """

    levels: tuple[LevelTargets, ...]
    positives: jax.Array
    boxes: jax.Array
    missed: jax.Array


def make_targets(
    boxes: jax.Array,
    classes: jax.Array,
    counted: jax.Array,
    config: RetinaNetConfig,
    size: tuple[int, int],
    settings: ConfigDict,
) -> Targets:
    """Matches the boxes of a batch with the anchors of its images.

    Args:
      boxes: f32 [B, M, 4].
      classes: i32 [B, M], -1 for padding.
      counted: bool [B]; of other images all anchors are ignored.
      config: of the network.
      size: height and width of the images.
      settings: the section `detection`.
    """
    anchors = jnp.asarray(_in_a_row(config, size))
    # Without boxes an image has no positives; its background is taken out below.
    classes = jnp.where(counted[:, None], classes, -1)

    def of_image(boxes: jax.Array, classes: jax.Array) -> Matched:
        return match(
            anchors,
            boxes,
            classes,
            foreground=settings.foreground_iou,
            background=settings.background_iou,
        )

    matched = jax.vmap(of_image)(boxes, classes)
    matched = matched._replace(classes=jnp.where(counted[:, None], matched.classes, IGNORED))
    maps = [anchors.shape[:3] for anchors in level_anchors(config, size)]
    return Targets(
        _by_level(matched, maps),
        jnp.sum(matched.positive, dtype=jnp.float32),
        jnp.sum(classes >= 0, dtype=jnp.float32),
        jnp.sum(matched.missed, dtype=jnp.float32),
    )


@functools.lru_cache(maxsize=64)
def _in_a_row(config: RetinaNetConfig, size: tuple[int, int]) -> np.ndarray:
    """Anchors f32 [N, 4] in the order level, anchor of the location, row, column."""
    levels = level_anchors(config, size)
    return np.concatenate([np.moveaxis(level, 2, 0).reshape(-1, 4) for level in levels])


def _by_level(matched: Matched, maps: Sequence[tuple[int, int, int]]) -> tuple[LevelTargets, ...]:
    """Cuts [B, N, ..] to levels of (h, w, A), as [B, h, w, A, ..]."""
    levels, start = [], 0
    for height, width, count in maps:
        stop = start + height * width * count
        parts = []
        for whole in matched[:3]:  # all but the number of boxes that were missed
            rest = whole.shape[2:]
            part = whole[:, start:stop].reshape(-1, count, height * width, *rest)
            parts.append(part.swapaxes(1, 2).reshape(-1, height, width, count, *rest))
        levels.append(LevelTargets(*parts))
        start = stop
    return tuple(levels)
