"""From the numbers of a RetinaNet to detections, inside the compiled program.

Letters: B images, h w a map of a level, n = h * w * A anchors of it, C classes, k candidates of a
level, N candidates of all levels, K detections.

The k best pairs of anchor and class of each level are decoded, clipped to the network's image and
thinned out class by class; the best K are the answer. All comparisons are of logits, which are
ordered as the scores are but do not saturate: a score becomes 1.0 where the logit is 17. Of equal
logits the lower level comes first, then the lower anchor, then the lower class, on every platform.

A detector that has diverged must be seen. A pair whose logit is not finite, or whose anchor has an
offset that is not, comes before all others, is not held to the threshold, and has the score NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vitattn.detection.answers.nms import greedy_nms
from vitattn.detection.geometry.anchors import level_anchors
from vitattn.detection.geometry.boxes import clip, decode
from vitattn.models.retinanet.config import RetinaNetConfig

Array = jax.Array
Detected = dict[str, Array]


class Level(Protocol):
    """What a RetinaNet says of a level: `vitattn.models.retinanet.network.Level`."""

    @property
    def classes(self) -> Array:
        """Logits f32 [B, h, w, A * C]."""
        ...

    @property
    def boxes(self) -> Array:
        """Offsets f32 [B, h, w, A * 4]."""
        ...


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
      keys: f32 [B, k], logits; +inf for what is not finite.
      anchors: i32 [B, k], their numbers in the level.
      classes: i32 [B, k].
    """

    keys: Array
    anchors: Array
    classes: Array


def detect(levels: Sequence[Level], config: RetinaNetConfig, options: Options) -> Detected:
    """Returns the detections of a batch, the best first.

    Args:
      levels: of `RetinaNet.__call__`, P3 first.
      config: of the network.
      options: what counts as a detection.

    Returns:
      {"boxes": f32 [B, K, 4], y0 x0 y1 x1 in pixels of the network's image, "scores": f32 [B, K],
      "classes": i32 [B, K], "finite": bool [B]}. Behind the last detection the class is -1, box
      and score are 0. `finite` is False where any number that the network computed is not.
    """
    size = image_size(levels, config)
    parts = [
        _of_level(level, jnp.asarray(anchors), size, options.candidates)
        for level, anchors in zip(levels, level_anchors(config, size), strict=True)
    ]
    boxes, keys, classes = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    scores = jnp.where(jnp.isinf(keys), jnp.nan, jax.nn.sigmoid(keys))
    eligible = jnp.where(scores <= options.score_threshold, -jnp.inf, keys)
    most = options.max_detections
    kept = greedy_nms(boxes, eligible, classes, iou=options.nms_iou, most=most)
    found, at = kept >= 0, jnp.maximum(kept, 0)

    def best(values: Array, nothing: float) -> Array:
        return jnp.where(found, jnp.take_along_axis(values, at, axis=1), nothing)

    chosen = jnp.take_along_axis(boxes, at[..., None], axis=1)
    return {
        "boxes": jnp.where(found[..., None], chosen, 0.0),
        "scores": (of_best := best(scores, 0.0)),
        "classes": best(classes, -1),
        "finite": ~jnp.isnan(of_best[:, 0]),
    }


def image_size(levels: Sequence[Level], config: RetinaNetConfig) -> tuple[int, int]:
    """Height and width of the images that these levels are of."""
    _, height, width, _ = levels[0].classes.shape
    return height * 2**config.min_level, width * 2**config.min_level


def _of_level(
    level: Level, anchors: Array, size: tuple[int, int], most: int
) -> tuple[Array, Array, Array]:
    """Boxes f32 [B, k, 4], keys f32 [B, k] and classes i32 [B, k] of a level's candidates.

    Args:
      level: what the network says.
      anchors: f32 [h, w, A, 4].
      size: height and width of the network's image.
      most: k is this, or all pairs of the level where they are fewer.
    """
    count = anchors.size // 4
    offsets = level.boxes.reshape(-1, count, 4)
    finite = jnp.isfinite(offsets).all(-1, keepdims=True)
    logits = level.classes.reshape(*offsets.shape[:2], -1)
    best = best_pairs(jnp.where(finite & jnp.isfinite(logits), logits, jnp.inf), most)
    chosen = jnp.take_along_axis(offsets, best.anchors[..., None], axis=1)
    boxes = clip(decode(chosen, anchors.reshape(-1, 4)[best.anchors]), *size)
    return boxes, best.keys, best.classes


def best_pairs(keys: Array, most: int) -> Candidates:
    """Returns the best pairs of anchor and class; of equal ones those of the lower anchor, then
    those of the lower class.

    They belong to the anchors whose best class is best, which are as many at most. For if a pair's
    anchor is not among the first k anchors, each of these has a pair that comes before it. So of
    3,456,000 pairs of P3 at 640 pixels 38,400 are sorted, and then 90,000.

    Args:
      keys: f32 [B, n, C] without NaN.
      most: k, which is n * C where that is less.
    """
    count, classes = keys.shape[1:]
    if most < count:
        of_anchors = jax.lax.top_k(keys.max(-1), most)[1]
        # In the order of anchors again, so that of equal keys the lower anchor stands first.
        numbers = jnp.sort(of_anchors, axis=1)
        keys = jnp.take_along_axis(keys, numbers[..., None], axis=1)
    else:
        numbers = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), keys.shape[:2])
    pairs = keys.reshape(keys.shape[0], -1)
    best, at = jax.lax.top_k(pairs, min(most, count * classes))
    anchors = jnp.take_along_axis(numbers, at // classes, axis=1)
    return Candidates(best, anchors, at % classes)
