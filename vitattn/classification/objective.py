"""Classification as pure functions of weights and a batch: the loss that is trained, the metrics
that are measured.

B images of a batch, C classes. A batch is {"image": f32 [B, H, W, 3], "label": i32 [B],
"weight": f32 [B]}; weight 0 marks images that do not count (padding, unreadable files). A training
batch of mixed images has {"partner": i32 [B], "share": f32 [B]} as well: the target of an image is
`share` times its label and 1 - share times its partner's.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from trainlib.model import losses, metrics
from trainlib.model.weights import Abstract, Arrays, observed
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, LossFn, LossOutput, Sums
from vitattn.augmentation.settings import mixes
from vitattn.models import ModelConfig

FIELDS = ("image", "label", "weight")
MIXED = ("partner", "share")  # of training batches where images are mixed


def fields(plan: Plan[ModelConfig]) -> tuple[str, ...]:
    """Returns the names of the arrays of a batch that the loss reads."""
    return FIELDS + MIXED if mixes(plan.config.data) else FIELDS


def abstract_batch(plan: Plan[ModelConfig]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a global training batch as shapes with shardings."""
    size = plan.config.batch_size
    shapes = {
        "image": ((size, *plan.model.size, 3), jnp.float32),
        "label": ((size,), jnp.int32),
        "weight": ((size,), jnp.float32),
        "partner": ((size,), jnp.int32),
        "share": ((size,), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct(*shapes[name], sharding=plan.batch_sharding)
        for name in fields(plan)
    }


def make_loss(plan: Plan[ModelConfig]) -> LossFn:
    """Returns the training loss of a run; see `loss_function`."""
    return loss_function(plan.abstract, plan.config.label_smoothing)


def make_evaluate(plan: Plan[ModelConfig]) -> Callable[[Arrays, Arrays, Batch], Sums]:
    """Returns the metrics of a run; see `evaluate_function`."""
    return evaluate_function(plan.abstract)


def loss_function(abstract: Abstract, label_smoothing: float) -> LossFn:
    """Returns the training loss: mean cross entropy over the images that count, with top-1.

    Images that do not count are not in the batch statistics either. Of mixed images the target is
    the mixture of both labels, each of them smoothed; top-1 counts an image by the part of its
    target that lies in the likeliest class, as in the code of mixup.
    """

    def loss_fn(
        params: Arrays, model_state: Arrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, LossOutput]:
        model = abstract.bind(params, model_state)
        weights = batch["weight"]
        logits = model(batch["image"], train=True, key=key, weights=weights)  # [B, C]
        with jax.named_scope("loss"):
            total = correct = jnp.zeros((), jnp.float32)
            for labels, part in _targets(batch):
                total += losses.softmax_cross_entropy(logits, labels, part, label_smoothing)[0]
                correct += metrics.top_k_correct(logits, labels, part).total
            count = jnp.sum(weights.astype(jnp.float32))
        top1 = metrics.Metric(correct, count)
        out = LossOutput(count, model_state, {"top1": top1}, observed(model))
        return losses.mean(total, count), out

    return loss_fn


def _targets(batch: Batch) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Returns the labels of a batch i32 [B] with their weights f32 [B]: cross entropy is linear in
    its target, so that a mixture of labels is a sum over them.
    """
    weights = batch["weight"]
    if "share" not in batch:
        return ((batch["label"], weights),)
    share = batch["share"]
    return (batch["label"], weights * share), (batch["partner"], weights * (1 - share))


def evaluate_function(abstract: Abstract) -> Callable[[Arrays, Arrays, Batch], Sums]:
    """Returns a function that sums loss, top-1 and top-5 over the images that count, with running
    statistics."""

    def evaluate(params: Arrays, model_state: Arrays, batch: Batch) -> Sums:
        model = abstract.bind(params, model_state)
        logits = model(batch["image"], train=False)  # [B, C]
        labels, weights = batch["label"], batch["weight"]
        return {
            "loss": losses.softmax_cross_entropy(logits, labels, weights),
            "top1": metrics.top_k_correct(logits, labels, weights, 1),
            "top5": metrics.top_k_correct(logits, labels, weights, 5),
        }

    return evaluate
