"""Detection as pure functions of weights and a batch: the loss that is trained, the detections
that are measured.

Letters: B images of a batch, H W the network's image, M rows of boxes an image, of which some are
padding. A training batch is

    image    f32 [B, H, W, 3]
    boxes    f32 [B, M, 4], (y0, x0, y1, x1) in pixels of the network's image
    classes  i32 [B, M], -1 for padding
    counts   i32 [B, 4], boxes of the record; of them outside the crop, too thin after it, beyond M
    weight   f32 [B]; an image of weight 0 counts nowhere, and every other one as one image

    loss = focal / n + box_weight * huber / (4 n),    n = 1 + positive anchors of the global batch

The sums are over all images of all devices. Of a batch in k microbatches each has n_i = its
positives + 1/k; the step weighs its loss and gradient by n_i and divides by their sum, which is n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from trainlib.model.weights import Arrays, observed
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, LossFn, LossOutput
from vitattn.detection.answers.postprocess import Options, detect
from vitattn.detection.objective import losses
from vitattn.detection.objective.targets import LevelTargets, make_targets
from vitattn.models.retinanet.config import RetinaNetConfig
from vitattn.models.retinanet.network import Level

FIELDS = ("image", "boxes", "classes", "counts", "weight")
LOST = ("outside", "thin", "beyond")  # columns 1.. of the counts: boxes that are no targets


def fields(plan: Plan[RetinaNetConfig]) -> tuple[str, ...]:
    """Returns the names of the arrays of a batch that the loss reads: the same for every plan."""
    return FIELDS


def abstract_batch(plan: Plan[RetinaNetConfig]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a global training batch as shapes with shardings."""
    size, rows = plan.config.batch_size, plan.config.data.max_boxes
    shapes = {
        "image": ((size, *plan.model.size, 3), jnp.float32),
        "boxes": ((size, rows, 4), jnp.float32),
        "classes": ((size, rows), jnp.int32),
        "counts": ((size, 1 + len(LOST)), jnp.int32),
        "weight": ((size,), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=plan.batch_sharding)
        for name, (shape, dtype) in shapes.items()
    }


def make_loss(plan: Plan[RetinaNetConfig]) -> LossFn:
    """Returns the training loss of a run: the formula of the module's docstring.

    Metrics: `loss_classes` and `loss_boxes`, whose sum is the loss; `positives`, anchors an image
    that have a box; `boxes_missed`, the share of the batch's boxes that no anchor was given (see
    `matching`); `boxes_outside`, `boxes_thin` and `boxes_beyond`, shares of the records' boxes.
    """
    settings = plan.config.detection
    model_config, parts = plan.model, plan.config.microbatches

    def loss_fn(
        params: Arrays, model_state: Arrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, LossOutput]:
        model = plan.abstract.bind(params, model_state)
        levels = model(batch["image"], train=True, key=key, weights=batch["weight"])
        counted, size = batch["weight"] > 0, model_config.size
        with jax.named_scope("targets"):
            found = make_targets(
                batch["boxes"], batch["classes"], counted, model_config, size, settings
            )
        with jax.named_scope("loss"):
            classes, offsets = sums(levels, found.levels, settings)
            count = found.positives + 1.0 / parts
            offsets *= settings.box_weight / 4
        metrics = {
            "loss_classes": (classes, count),
            "loss_boxes": (offsets, count),
            "positives": (found.positives, jnp.sum(counted, dtype=jnp.float32)),
            "boxes_missed": (found.missed, found.boxes),
        }
        counts = batch["counts"].sum(0, dtype=jnp.float32)
        lost = {f"boxes_{name}": (counts[i], counts[0]) for i, name in enumerate(LOST, 1)}
        out = LossOutput(count, model_state, metrics | lost, observed(model))
        return (classes + offsets) / count, out

    return loss_fn


def make_evaluate(
    plan: Plan[RetinaNetConfig],
) -> Callable[[Arrays, Arrays, Batch], dict[str, jax.Array]]:
    """Returns what is computed of each batch of an evaluation: its detections, see `detect`, in
    pixels of the network's image. They are no sums: only over a whole split can they be scored.
    """
    options = Options.of(plan.config.detection)

    def evaluate(params: Arrays, model_state: Arrays, batch: Batch) -> dict[str, jax.Array]:
        model = plan.abstract.bind(params, model_state)
        return detect(model(batch["image"], train=False), plan.model, options)

    return evaluate


def sums(
    levels: Sequence[Level], targets: Sequence[LevelTargets], settings: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Focal and Huber loss, summed over the levels of all images.

    Each level for itself, so that the logits are not put together.
    """
    classes = boxes = jnp.zeros((), jnp.float32)
    for level, target in zip(levels, targets, strict=True):
        classes += losses.focal(level.classes, target.classes, settings.alpha, settings.gamma)
        boxes += losses.huber(level.boxes, target.boxes, target.positive, settings.huber_delta)
    return classes, boxes
