"""Classification as pure functions of weights and a batch: the loss that is trained, the metrics
that are measured.

B images of a batch; a batch is {"image": f32 [B, H, W, 3], "label": i32 [B], "weight": f32 [B]},
weight 0 marks rows that do not count (padding, unreadable images).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from trainlib.model import losses, metrics
from trainlib.model import weights as nn
from trainlib.model.weights import Abstract, Arrays
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, LossFn, LossOutput, Sums

FIELDS = ("image", "label", "weight")


def fields(plan: Plan[Any]) -> tuple[str, ...]:
    """Names of the arrays of a batch that the loss reads."""
    return FIELDS


def make_loss(plan: Plan[Any]) -> LossFn:
    """The training loss of a run; see `loss_function`."""
    return loss_function(plan.abstract, plan.config.label_smoothing)


def make_evaluate(plan: Plan[Any]) -> Callable[[Arrays, Arrays, Batch], Sums]:
    """The metrics of a run; see `evaluate_function`."""
    return evaluate_function(plan.abstract)


def loss_function(abstract: Abstract, label_smoothing: float) -> LossFn:
    """The training loss: mean cross entropy over the rows that count, and top-1 on the way.

    Rows that do not count are in no batch statistics either.
    """

    def loss_fn(
        params: Arrays, model_state: Arrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, LossOutput]:
        model = abstract.bind(params, model_state)
        labels, weights = batch["label"], batch["weight"]
        logits = model(batch["image"], train=True, key=key, weights=weights)
        total, count = losses.softmax_cross_entropy(logits, labels, weights, label_smoothing)
        correct = metrics.top_k_correct(logits, labels, weights)
        out = LossOutput(count, model_state, {"top1": correct}, nn.observed(model))
        return losses.mean(total, count), out

    return loss_fn


def evaluate_function(abstract: Abstract) -> Callable[[Arrays, Arrays, Batch], Sums]:
    """Sums of loss, top-1 and top-5 over the rows that count, with running statistics."""

    def evaluate(params: Arrays, model_state: Arrays, batch: Batch) -> Sums:
        model = abstract.bind(params, model_state)
        logits = model(batch["image"], train=False)
        labels, weights = batch["label"], batch["weight"]
        return {
            "loss": losses.softmax_cross_entropy(logits, labels, weights),
            "top1": metrics.top_k_correct(logits, labels, weights, 1),
            "top5": metrics.top_k_correct(logits, labels, weights, 5),
        }

    return evaluate
