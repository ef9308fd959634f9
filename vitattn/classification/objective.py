"""Classification as pure functions of weights and a batch: the loss that is trained, the metrics
that are measured.

B images of a batch, C classes. A batch is {"image": f32 [B, H, W, 3], "label": i32 [B],
"weight": f32 [B]}; weight 0 marks images that do not count (padding, unreadable files).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from trainlib.model import losses, metrics
from trainlib.model.weights import Abstract, Arrays, observed
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, LossFn, LossOutput, Sums
from vitattn.models import ModelConfig

FIELDS = ("image", "label", "weight")


def fields(plan: Plan[ModelConfig]) -> tuple[str, ...]:
    """Returns the names of the arrays of a batch that the loss reads: the same for every plan."""
    return FIELDS


def abstract_batch(plan: Plan[ModelConfig]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a global training batch as shapes with shardings."""
    size = plan.config.batch_size
    shapes = {
        "image": ((size, *plan.model.size, 3), jnp.float32),
        "label": ((size,), jnp.int32),
        "weight": ((size,), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=plan.batch_sharding)
        for name, (shape, dtype) in shapes.items()
    }


def make_loss(plan: Plan[ModelConfig]) -> LossFn:
    """Returns the training loss of a run; see `loss_function`."""
    return loss_function(plan.abstract, plan.config.label_smoothing)


def make_evaluate(plan: Plan[ModelConfig]) -> Callable[[Arrays, Arrays, Batch], Sums]:
    """Returns the metrics of a run; see `evaluate_function`."""
    return evaluate_function(plan.abstract)


def loss_function(abstract: Abstract, label_smoothing: float) -> LossFn:
    """Returns the training loss: mean cross entropy over the images that count, with top-1.

    Images that do not count are not in the batch statistics either.
    """

    def loss_fn(
        params: Arrays, model_state: Arrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, LossOutput]:
        model = abstract.bind(params, model_state)
        labels, weights = batch["label"], batch["weight"]
        logits = model(batch["image"], train=True, key=key, weights=weights)  # [B, C]
        with jax.named_scope("loss"):
            total, count = losses.softmax_cross_entropy(logits, labels, weights, label_smoothing)
            correct = metrics.top_k_correct(logits, labels, weights)
        out = LossOutput(count, model_state, {"top1": correct}, observed(model))
        return losses.mean(total, count), out

    return loss_fn


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
