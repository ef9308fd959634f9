"""From the numbers of a RetinaNet to detections, inside the compiled program.

Letters: B images, h w a map of a level, n = h * w * A anchors of it, C classes, k candidates of a
level, N candidates of all levels, K detections.

The k best pairs of anchor and class of each level are decoded, clipped to the network's image and
thinned out class by class; the best K are the answer. All comparisons are of logits, which are
ordered as the scores are but do not saturate: a score becomes 1.0 where the logit is 17. Of equal
logits the lower level comes first, then the lower anchor, then the lower class, on every platform.

A detector that has diverged must be seen: every place of an image for which the network computed
any number that is not finite has the score NaN.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from trainlib.sharding.constrain import batch_local
from vitattn.detection.answers.nms import greedy_nms
from vitattn.detection.geometry.anchors import level_anchors
from vitattn.detection.geometry.boxes import clip, decode
from vitattn.models.retinanet.config import RetinaNetConfig
from vitattn.models.retinanet.network import Level

Array = jax.Array
Detected = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Options:
    """What counts as a detection; the keys of these names in the section `detection.`.

    Attributes:
      score_threshold: a score must be above it.
      candidates: k, pairs of anchor and class of each level that are looked at.
      nms_iou: two boxes of a class that overlap more than this are one object.
      max_detections: K.
    """

    score_threshold: float = 0.05
    candidates: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 100

    @classmethod
    def of(cls, section: ConfigDict) -> Options:
        """Those of the section `detection` of a configuration."""
        return cls(**{field.name: section[field.name] for field in dataclasses.fields(cls)})


class Candidates(NamedTuple):
    """The best pairs of anchor and class of a level, the best first.

    Attributes:
      logits: f32 [B, k].
      anchors: i32 [B, k], their numbers in the level.
      classes: i32 [B, k].
      finite: bool [B], whether all logits of the level are.
    """

    logits: Array
    anchors: Array
    classes: Array
    finite: Array


def detect(levels: Sequence[Level], config: RetinaNetConfig, options: Options) -> Detected:
    """Returns the detections of a batch, the best first; each device has its own images.

    Args:
      levels: of `RetinaNet.__call__`, P3 first.
      config: of the network.
      options: what counts as a detection.

    Returns:
      {"boxes": f32 [B, K, 4], y0 x0 y1 x1 in pixels of the network's image, "scores": f32 [B, K],
      "classes": i32 [B, K], "finite": bool [B]}. Behind the last detection the class is -1, box
      and score are 0. Where `finite` is False, all scores are NaN.
    """

    def local(*maps: Array) -> Detected:
        own = [Level(*pair) for pair in zip(maps[::2], maps[1::2], strict=True)]
        return _of_device(own, config, options)

    # The partitioner would gather the batch for each top_k, and wait for all devices at each pick.
    return batch_local(local)(*(values for level in levels for values in level))


def _of_device(levels: Sequence[Level], config: RetinaNetConfig, options: Options) -> Detected:
    """`detect` for the images of one device."""
    size = image_size(levels, config)
    parts = [
        _of_level(level, jnp.asarray(anchors), size, options.candidates)
        for level, anchors in zip(levels, level_anchors(config, size), strict=True)
    ]
    *columns, sound = zip(*parts, strict=True)
    boxes, logits, classes = (jnp.concatenate(column, axis=1) for column in columns)
    finite = functools.reduce(jnp.logical_and, sound)
    scores = jax.nn.sigmoid(logits)
    likely = jnp.where(scores > options.score_threshold, logits, -jnp.inf)
    most = options.max_detections
    kept = greedy_nms(boxes, likely, classes, iou=options.nms_iou, most=most)
    there, at = kept >= 0, jnp.maximum(kept, 0)
    best = jnp.where(there, jnp.take_along_axis(scores, at, axis=1), 0.0)
    chosen = jnp.take_along_axis(boxes, at[..., None], axis=1)
    return {
        "boxes": jnp.where(there[..., None], chosen, 0.0),
        "scores": jnp.where(finite[:, None], best, jnp.nan),
        "classes": jnp.where(there, jnp.take_along_axis(classes, at, axis=1), -1),
        "finite": finite,
    }


def image_size(levels: Sequence[Level], config: RetinaNetConfig) -> tuple[int, int]:
    """Height and width of the images that these levels are of."""
    _, height, width, _ = levels[0].classes.shape
    return height * 2**config.min_level, width * 2**config.min_level


def _of_level(
    level: Level, anchors: Array, size: tuple[int, int], most: int
) -> tuple[Array, Array, Array, Array]:
    """Boxes f32 [B, k, 4], logits f32 [B, k] and classes i32 [B, k] of a level's candidates, and
    whether all numbers of the level are finite, bool [B].

    Args:
      level: what the network says.
      anchors: f32 [h, w, A, 4].
      size: height and width of the network's image.
      most: k is this, or all pairs of the level where they are fewer.
    """
    count = anchors.size // 4
    best = best_pairs(level.classes.reshape(level.classes.shape[0], count, -1), most)
    offsets = level.boxes.reshape(level.boxes.shape[0], count, 4)
    chosen = jnp.take_along_axis(offsets, best.anchors[..., None], axis=1)
    boxes = clip(decode(chosen, anchors.reshape(-1, 4)[best.anchors]), *size)
    return boxes, best.logits, best.classes, best.finite & jnp.isfinite(level.boxes).all((1, 2, 3))


def best_pairs(logits: Array, most: int) -> Candidates:
    """Returns the best pairs of anchor and class; of equal ones those of the lower anchor, then
    those of the lower class.

    They belong to the anchors whose best class is best, which are as many at most. For if a pair's
    anchor is not among the first k anchors, each of these has a pair that comes before it. So of
    3,456,000 pairs of P3 at 640 pixels 38,400 are sorted, and then 90,000.

    Args:
      logits: f32 [B, n, C].
      most: k, which is n * C where that is less.
    """
    count, classes = logits.shape[1:]
    if most < count:
        # Infinite maxima tell what is not finite, without a walk of its own over the logits, which
        # are nearly all that is read here. A maximum loses NaN on some platforms.
        of_anchors = jnp.where(jnp.isfinite(logits), logits, jnp.inf).max(-1)
        finite = jnp.isfinite(of_anchors).all(1)
        # In the order of anchors again, so that of equal logits the lower anchor stands first.
        numbers = jnp.sort(jax.lax.top_k(of_anchors, most)[1], axis=1)
        logits = jnp.take_along_axis(logits, numbers[..., None], axis=1)
    else:
        finite = jnp.isfinite(logits).all((1, 2))
        numbers = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), logits.shape[:2])
    pairs = logits.reshape(logits.shape[0], -1)
    best, at = jax.lax.top_k(pairs, min(most, count * classes))
    anchors = jnp.take_along_axis(numbers, at // classes, axis=1)
    return Candidates(best, anchors, at % classes, finite)
