"""The objective of a plan: that of the task which its configuration names.

Commands of both families ask here. The loss of classification itself is in
`vitattn/classification/objective.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainlib.model.weights import Arrays
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, LossFn
from vitattn.models import ModelConfig
from vitattn.task import task_of


def fields(plan: Plan[ModelConfig]) -> tuple[str, ...]:
    """Returns the names of the arrays of a batch that the loss reads."""
    return task_of(plan.config).fields(plan)


def make_loss(plan: Plan[ModelConfig]) -> LossFn:
    """Returns the training loss: `(params, model_state, batch, key) -> (mean loss, LossOutput)`."""
    return task_of(plan.config).make_loss(plan)


def make_evaluate(plan: Plan[ModelConfig]) -> Callable[[Arrays, Arrays, Batch], Any]:
    """Returns what evaluation computes of a batch: `(params, model_state, batch) -> arrays`."""
    return task_of(plan.config).make_evaluate(plan)
