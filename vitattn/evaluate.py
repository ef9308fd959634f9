"""The command that evaluates a checkpoint of a run, or an export, over a whole split."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from trainlib.errors import ConfigError, StorageError, shown
from trainlib.formats.load import load_weights
from trainlib.formats.weight_source import is_export
from trainlib.run.progress import summary
from trainlib.run.workdir import evidence_kept
from trainlib.step import step
from vitattn.labels import class_names
from vitattn.models.counts import check_size
from vitattn.plan import make
from vitattn.task import task_of


def run(
    config: ConfigDict,
    workdir: Path,
    at_step: int | None = None,
    write_predictions: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run, or an export, on an evaluation split and prints the result.

    Labels are matched by the names of their classes.

    Args:
      config: the configuration of the run.
      workdir: where its checkpoints are, or a directory that `launch.export` wrote.
      at_step: which step; None is the newest.
      write_predictions: directory for the files of predictions, of tasks that have any; None is
        the workdir.

    Returns:
      "step", "split" and the names of `Evaluation.flat`.

    Raises:
      CheckpointError: there is no checkpoint, or not that one.
      ConfigError: a step of an export, or a directory for predictions of a task without any.
      DataError: the data have a class that the model was not trained on.
      NumericAbort: the model's answers are not finite.
      StorageError: nothing can be written into the directory for predictions.
    """
    task = task_of(config)
    if write_predictions is not None and not task.WRITES_PREDICTIONS:
        raise ConfigError(
            f"--write_predictions: the task {config.task} has no predictions to write. It is for "
            "detection, and for runs of family moe."
        )
    directory = write_predictions or workdir
    if task.WRITES_PREDICTIONS and jax.process_index() == 0:
        _check_writable(directory)
    if is_export(workdir):
        check_size(config)
    plan = make(config)
    at_step, names = class_names.of_model(workdir, at_step, plan.model.num_classes)
    source, matched = task.open_evaluation(plan, names, workdir)
    for line in source.left_out:
        print(line)
    loaded = load_weights(workdir, at_step, plan.abstract, plan.shardings)
    eval_step = step.compile_eval(task.make_evaluate(plan), plan)
    with evidence_kept(directory):
        result = task.over_split(eval_step, loaded.params, loaded.model_state, source, plan)
    written = {}
    if jax.process_index() == 0:
        written = result.write(directory)
    files = [(label, shown(file)) for label, file in written.items()]
    rows = [("step", loaded.step), *result.rows(config), ("labels", matched), *files]
    print(summary(f"{config.name} on {shown(config.data.source)}", rows))
    return {"step": loaded.step, "split": config.data.eval_split, **result.flat()}


def _check_writable(directory: Path) -> None:
    """Makes the directory, and refuses one that takes no file, before anything is computed.

    Raises:
      StorageError: the disk refuses.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise StorageError(
            f"Predictions cannot be written to {shown(directory)}: {error.strerror or error}. Name "
            "another directory: --write_predictions=DIR."
        ) from None
