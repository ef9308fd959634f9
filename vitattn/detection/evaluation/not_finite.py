"""Stops where a detector has diverged.

COCO's tool compares with NaN, finds every overlap large enough, and calls such a detector perfect.
"""

from __future__ import annotations

import json
import math
from typing import Any

from trainlib.errors import NumericAbort, shown
from vitattn.detection.data.truth import Truthful
from vitattn.detection.evaluation.gather import Gathered

NAME = "not_finite.json"  # of the file that holds the detections
_IMAGES, _DETECTIONS = 100, 100  # that it holds: images, detections of each


def check_finite(gathered: Gathered, source: Truthful) -> None:
    """Refuses detections that are not finite.

    Raises:
      NumericAbort: with the detections of the images concerned.
    """
    odd = gathered.not_finite
    if not len(odd):
        return
    images = [_image(gathered, source, int(record)) for record in odd[:_IMAGES]]
    count = len(odd)
    kept = {"images_not_finite": count, "images_evaluated": len(source), "images": images}
    named = ", ".join(shown(image["image"], 80) for image in images[:3])
    raise NumericAbort(
        f"The detector's numbers are NaN or infinite on {count:,} of {len(source):,} images "
        f"({named}{', ..' if count > 3 else ''}), so nothing was measured: COCO's tool would take "
        "such boxes for perfect ones. The weights, or the images, are no longer what the network "
        "can compute with. Evaluate an older step (--step=N), or train with a lower "
        "schedule.learning_rate, a longer schedule.warmup_steps or optimizer.clip_norm.",
        evidence=(NAME, json.dumps(kept, indent=1, allow_nan=False) + "\n"),
    )


def _image(gathered: Gathered, source: Truthful, record: int) -> dict[str, Any]:
    """An image and what was found on it; numbers that JSON does not have are words."""
    found = gathered.found.at(gathered.found.records == record)
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    return {
        "image": source.describe(record),
        "image_id": source.image_id(record),
        "detections": [
            {"bbox": [_word(side) for side in box], "score": _word(score), "class": kind}
            for box, score, kind in list(rows)[:_DETECTIONS]
        ],
    }


def _word(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)
