"""What a model learns: a table from `config.task` to the task.

Training, evaluation, prediction and compilation for a pod ask a `Task` for whatever differs between
classification and another task. A new task is a folder with a module of these functions, and a row
of `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from trainlib import extension
from trainlib.data.batches import Batches
from trainlib.errors import ConfigError, one_of
from trainlib.model.weights import Arrays
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, LossFn, Sums
from vitattn.classification import task as classification
from vitattn.data import Source
from vitattn.labels.class_names import ModelNames, Names
from vitattn.models import ModelConfig


class Evaluation(Protocol):
    """What was measured over a split."""

    def flat(self) -> dict[str, float]:
        """Returns name -> number, as metric files and checkpoints hold them."""
        ...

    def phrase(self) -> str:
        """Returns the result as part of a line of progress."""
        ...

    def rows(self, config: ConfigDict) -> list[tuple[str, str]]:
        """Returns the rows of a printed summary: label, text."""
        ...


class Splits(Protocol):
    """What a training run reads."""

    @property
    def train(self) -> Source:
        """The training split."""
        ...

    @property
    def held_out(self) -> Source:
        """The split that is evaluated on, with the labels of the training split."""
        ...

    @property
    def names(self) -> Names:
        """Names of the classes that the model's outputs stand for."""
        ...


class Task(Protocol):
    """What training, evaluation and prediction ask of a task; a module can be one."""

    @property
    def MEASURED(self) -> tuple[str, ...]:
        """Names in `Evaluation.flat` by which the best checkpoint can be chosen."""
        ...

    # ---------------------------------------------------------------- data
    def open_training(self, plan: Plan[ModelConfig]) -> Splits:
        """Opens the splits of a training run, and checks that model and settings fit them."""
        ...

    def open_evaluation(
        self, plan: Plan[ModelConfig], names: ModelNames | None, workdir: Path
    ) -> tuple[Source, str]:
        """Opens the evaluation split for a trained model whose outputs have these names.

        Returns the split, and a phrase that says how its labels were matched.
        """
        ...

    def train_batches(self, plan: Plan[ModelConfig], source: Source, start: int) -> Batches:
        """Returns this process's training batches from number `start` on, without end."""
        ...

    # ---------------------------------------------------------------- training and evaluation
    def fields(self, plan: Plan[ModelConfig]) -> tuple[str, ...]:
        """Returns the names of the arrays of a batch that the loss reads."""
        ...

    def abstract_batch(self, plan: Plan[ModelConfig]) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns a global training batch as shapes with shardings."""
        ...

    def make_loss(self, plan: Plan[ModelConfig]) -> LossFn:
        """Returns the training loss as a pure function."""
        ...

    def make_evaluate(self, plan: Plan[ModelConfig]) -> Callable[[Arrays, Arrays, Batch], Sums]:
        """Returns what is computed on the devices for each batch of an evaluation."""
        ...

    def over_split(
        self,
        eval_step: Callable[[Arrays, Arrays, Batch], Sums],
        params: Arrays,
        model_state: Arrays,
        source: Source,
        plan: Plan[ModelConfig],
        between: Callable[[], object] = ...,
    ) -> Evaluation:
        """Evaluates weights on every record of a split; `between` is called before each batch."""
        ...

    # ---------------------------------------------------------------- prediction
    def predict(self, model: Callable[..., Any], images: jax.Array) -> dict[str, jax.Array]:
        """Applies a bound model to normalised images f32 [B, H, W, 3]: name -> [B, ...]."""
        ...

    def as_lines(self, outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
        """Returns the prediction for one image as lines for people."""
        ...

    def as_record(self, outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
        """Returns the prediction for one image as fields of a JSON object."""
        ...

    def caption(self, outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
        """Returns the prediction for one image as a phrase under a picture."""
        ...


_PARTS = ("MEASURED", *(name for name in vars(Task) if not name.startswith("_") and name.islower()))

TASKS: dict[str, Task] = {"classification": classification}


def task_of(config: ConfigDict) -> Task:
    """Returns the task that a configuration asks for.

    `config.task` is a name of `TASKS`, or MODULE:NAME of a task of one's own (for a module that is
    one itself: PACKAGE:MODULE).

    Raises:
      ConfigError: no such task, or not everything of one.
    """
    if config.task in TASKS:
        return TASKS[config.task]
    if not extension.is_reference(config.task):
        raise one_of("task", config.task, TASKS)
    task = extension.load(config.task, "task")
    if missing := [name for name in _PARTS if not hasattr(task, name)]:
        raise ConfigError(
            f"task='{config.task}' is no task: it lacks {', '.join(missing)}. A task is a module, "
            "or an object, with everything in vitattn.task.Task."
        )
    return task
