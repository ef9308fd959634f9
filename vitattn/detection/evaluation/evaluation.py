"""Evaluation of a detector: the figures of COCO on the exact boxes of the original images.

d detections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from trainlib.model.weights import Arrays
from trainlib.step import step
from trainlib.step.plan import Plan
from trainlib.step.step import Batch
from vitattn.detection.data.source import BoxedSource
from vitattn.detection.data.truth import GroundTruth, read_truth
from vitattn.detection.evaluation import coco_metrics
from vitattn.detection.evaluation.coco_metrics import Measured
from vitattn.detection.evaluation.gather import Collector, Gathered, gather
from vitattn.detection.evaluation.not_finite import check_finite
from vitattn.detection.evaluation.result import MEASURED, Evaluation
from vitattn.detection.input.pipeline import eval_batches
from vitattn.models import ModelConfig

__all__ = ["MEASURED", "WRITES_PREDICTIONS", "Evaluation", "measure", "over_split"]

WRITES_PREDICTIONS = True
_FIELDS = ("image", "weight")  # of a batch, that the network reads


def over_split(
    eval_step: Callable[[Arrays, Arrays, Batch], Any],
    params: Arrays,
    model_state: Arrays,
    source: BoxedSource,
    plan: Plan[ModelConfig],
    between: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Evaluates weights on every image of a split, on all processes together.

    Every process gets the same result.

    Args:
      eval_step: `step.compile_eval(make_evaluate(plan), plan)`; gives what `detect` does.
      params: weights.
      model_state: running statistics.
      source: the split.
      plan: of the model.
      between: called before each batch, and before each class when all are detected.

    Raises:
      DataError: the split has no box to find, or contradicts itself.
      NumericAbort: the network gave numbers that are not finite.
    """
    truth, config = read_truth(source), plan.config
    size = config.eval_batch_size or config.batch_size
    process = jax.process_index(), jax.process_count()
    collector = Collector(plan.batch_sharding)
    with eval_batches(source, config.data, size, *process, plan.model.size) as batches:
        waiting = None  # the device computes a batch while the one before it is taken in
        for batch in batches:
            between()
            arrays = step.put_batch({n: batch[n] for n in _FIELDS}, plan.batch_sharding)
            outputs = eval_step(params, model_state, arrays)
            if waiting is not None:
                collector.add(waiting[0], jax.device_get(waiting[1]))
            del batch["image"]
            waiting = batch, outputs
        assert waiting is not None, "a split has at least one batch"
        collector.add(waiting[0], jax.device_get(waiting[1]))
    gathered = collector.gathered(len(source))
    check_finite(gathered, source)
    return measure(gathered, truth, source, config.detection.max_detections, between)


def measure(
    gathered: Gathered,
    truth: GroundTruth,
    source: BoxedSource,
    limit: int,
    between: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Measures what was gathered; every process takes its share of the categories.

    Args:
      gathered: all of it finite.
      truth: of the split.
      source: the split.
      limit: detections of an image at most.
      between: called before each category.
    """
    found, categories = gathered.found, _categories(gathered.found.classes, source.category_ids)
    elsewhere = categories < 0
    found, categories = found.at(~elsewhere), categories[~elsewhere]
    most = coco_metrics.limits(limit)
    mine = range(len(truth.category_ids))[jax.process_index() :: jax.process_count()]
    parts = coco_metrics.measure(truth, found, categories, mine, most, between)
    numbers = gather(np.array(mine, np.int64))
    measured = Measured(*(gather(part[list(mine)])[np.argsort(numbers)] for part in parts))
    return Evaluation(
        coco_metrics.figures(measured, most),
        coco_metrics.of_categories(measured, most),
        measured.curves,
        truth,
        found,
        categories,
        limit,
        tuple(source.describe(int(record)) for record in gathered.unread),
        int(elsewhere.sum()),
    )


def _categories(classes: np.ndarray, category_ids: tuple[int, ...]) -> np.ndarray:
    """Outputs of the model i64 [d] -> their category ids; -1 for those without one."""
    ids = np.full(max(len(category_ids), int(classes.max(initial=-1)) + 1), -1, np.int64)
    ids[: len(category_ids)] = category_ids
    return ids[classes]
