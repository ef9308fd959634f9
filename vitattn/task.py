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
from PIL import Image

from trainlib import extension
from trainlib.data.batches import Batches
from trainlib.errors import ConfigError, one_of
from trainlib.model.weights import Arrays
from trainlib.report.samples import Sample
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, LossFn
from vitattn.classification import task as classification
from vitattn.data.source import Checked, DataSet
from vitattn.data.unlabelled import Unlabelled
from vitattn.detection import task as detection
from vitattn.images.decode import Rgb
from vitattn.images.size import Size
from vitattn.labels.class_names import ModelNames, Names


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

    def write(self, directory: Path) -> dict[str, Path]:
        """Writes what belongs to the result beside its numbers; returns label -> file."""
        ...


class Splits(Protocol):
    """What a training run reads."""

    @property
    def train(self) -> DataSet:
        """The training split."""
        ...

    @property
    def held_out(self) -> DataSet:
        """The split that is evaluated on, with the labels of the training split."""
        ...

    @property
    def names(self) -> Names:
        """Names of the classes that the model's outputs stand for."""
        ...


class Pictures(Protocol):
    """Draws what is said of images, one after the other."""

    def add(self, number: int, outputs: Mapping[str, np.ndarray]) -> None:
        """Draws an image, given its number and its finished prediction."""
        ...

    def close(self) -> dict[str, str]:
        """Writes what belongs to all of them; returns label -> phrase on what was written."""
        ...


class Task(Protocol):
    """What training, evaluation and prediction ask of a task; a module can be one.

    A `source` that is passed to a task is one that it opened itself, with examples of its kind.
    """

    @property
    def MEASURED(self) -> tuple[str, ...]:
        """Names in `Evaluation.flat` by which the best checkpoint can be chosen."""
        ...

    @property
    def WRITES_PREDICTIONS(self) -> bool:
        """Whether `Evaluation.write` has files of predictions to write."""
        ...

    # ---------------------------------------------------------------- configuration
    def settings(self) -> dict[str, tuple[Any, str]]:
        """Returns the configuration keys that runs of this task have beside those of all runs, the
        section `data.` among them: dotted name -> (default, meaning).
        """
        ...

    def check(self, config: ConfigDict) -> None:
        """Refuses a model or settings that this task cannot use.

        Raises:
          ConfigError: names the key, its value and what is allowed.
        """
        ...

    # ---------------------------------------------------------------- data
    def make_source(self, config: ConfigDict, split: str) -> DataSet:
        """Opens a split of the data set that the section `data` of a configuration names."""
        ...

    def check_data(self, config: ConfigDict, boxes: Path | None) -> Checked:
        """Looks through all splits of the data set of a configuration; `boxes` is a directory into
        which a few examples are drawn with their boxes.
        """
        ...

    def statistics(self, config: ConfigDict) -> tuple[Rgb, Rgb]:
        """Returns mean and standard deviation by which images are normalised, in units of the full
        range, from the section `data` of a configuration; the data need not be there.
        """
        ...

    def open_training(self, plan: Plan[Any]) -> Splits:
        """Opens the splits of a training run, and checks that model and settings fit them."""
        ...

    def open_evaluation(
        self, plan: Plan[Any], names: ModelNames | None, workdir: Path
    ) -> tuple[DataSet, str]:
        """Opens the evaluation split for a trained model whose outputs have these names.

        Returns the split, and a phrase that says how its labels were matched.
        """
        ...

    def train_batches(self, plan: Plan[Any], source: Any, start: int) -> Batches:
        """Returns this process's training batches from number `start` on, without end."""
        ...

    def image_batches(
        self, source: Unlabelled, config: ConfigDict, batch_size: int, image_size: Size
    ) -> Batches:
        """Returns batches of images without labels, once and in order, made as those of evaluation
        are; `config` is the section `data` of a configuration.
        """
        ...

    # ---------------------------------------------------------------- training and evaluation
    def fields(self, plan: Plan[Any]) -> tuple[str, ...]:
        """Returns the names of the arrays of a batch that the loss reads."""
        ...

    def abstract_batch(self, plan: Plan[Any]) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns a global training batch as shapes with shardings."""
        ...

    def make_loss(self, plan: Plan[Any]) -> LossFn:
        """Returns the training loss as a pure function."""
        ...

    def make_evaluate(self, plan: Plan[Any]) -> Callable[[Arrays, Arrays, Batch], Any]:
        """Returns what is computed on the devices for each batch of an evaluation: sums, or other
        arrays that `over_split` understands.
        """
        ...

    def over_split(
        self,
        eval_step: Callable[[Arrays, Arrays, Batch], Any],
        params: Arrays,
        model_state: Arrays,
        source: Any,
        plan: Plan[Any],
        between: Callable[[], object] = ...,
    ) -> Evaluation:
        """Evaluates weights on every record of a split; `between` is called before each batch."""
        ...

    # ---------------------------------------------------------------- prediction
    def make_predict(
        self, config: ConfigDict
    ) -> Callable[[Callable[..., Any], jax.Array], dict[str, jax.Array]]:
        """Returns a pure function `(bound model, normalised images f32 [B, H, W, 3]) -> {name:
        [B, ...]}`, as the whole configuration of the run asks for it.
        """
        ...

    def serving(
        self, config: ConfigDict
    ) -> tuple[Callable[[Callable[..., Any], jax.Array], Any], dict[str, Any]]:
        """Returns what an exported program computes, and facts on it as plain data: a pure function
        `(bound model, normalised images f32 [B, H, W, 3]) -> an array, or arrays by name`.
        """
        ...

    def finish(
        self, outputs: Mapping[str, np.ndarray], example: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns what `make_predict`'s function gave for one image in terms of the image that was
        given; `example` is its part of a batch of `image_batches`.
        """
        ...

    def answer(
        self, outputs: Mapping[str, np.ndarray], names: Sequence[str], image: Path | None
    ) -> Any:
        """Returns the finished prediction for one image as an object for callers of the library;
        `image` is the file that was read, None where it was in memory.
        """
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

    def sample(
        self,
        example: Any,
        outputs: Mapping[str, np.ndarray],
        names: Sequence[str],
        seen: Image.Image,
    ) -> Sample:
        """Returns the finished prediction for one held-out image beside its truth, without a title:
        `example` is what the split gave, `names` are printable, `seen` is the image as the model
        saw it, enlarged where it is small.
        """
        ...

    def open_pictures(
        self, directory: Path, images: Sequence[Path], names: Names, least: float
    ) -> Pictures:
        """Returns what draws predictions on image files into a directory; `least` is the score from
        which something is drawn.

        Raises:
          ConfigError: there is nothing to draw in this task, or the directory cannot take it.
        """
        ...


_PARTS = (
    "MEASURED",
    "WRITES_PREDICTIONS",
    *(name for name in vars(Task) if not name.startswith("_") and name.islower()),
)

TASKS: dict[str, Task] = {"classification": classification, "detection": detection}


def task_of(config: ConfigDict) -> Task:
    """Returns the task that a configuration asks for; see `by_name`."""
    return by_name(config.task)


def by_name(name: str) -> Task:
    """Returns a task.

    Args:
      name: of `TASKS`, or MODULE:NAME of a task of one's own (for a module that is one itself:
        PACKAGE:MODULE).

    Raises:
      ConfigError: no such task, or not everything of one.
    """
    if name in TASKS:
        return TASKS[name]
    if not extension.is_reference(name):
        raise one_of("task", name, TASKS)
    task = extension.load(name, "task")
    if missing := [part for part in _PARTS if not hasattr(task, part)]:
        raise ConfigError(
            f"task='{name}' is no task: it lacks {', '.join(missing)}. A task is a module, "
            "or an object, with everything in vitattn.task.Task."
        )
    return task
