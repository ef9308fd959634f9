"""The command that evaluates a checkpoint of a run, or an export, over a whole split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from trainlib.errors import ConfigError, shown
from trainlib.formats.load import load_weights
from trainlib.formats.weight_source import is_export
from trainlib.run.progress import summary
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
      write_predictions: refused; there is no leader board for these tasks.

    Returns:
      "step", "split" and the names of `Evaluation.flat`.

    Raises:
      CheckpointError: there is no checkpoint, or not that one.
      ConfigError: a step of an export, or a directory for predictions.
      DataError: the data have a class that the model was not trained on.
    """
    if write_predictions is not None:
        raise ConfigError("--write_predictions is for runs of family moe.")
    if is_export(workdir):
        check_size(config)
    plan, task = make(config), task_of(config)
    at_step, names = class_names.of_model(workdir, at_step, plan.model.num_classes)
    source, matched = task.open_evaluation(plan, names, workdir)
    for line in source.left_out:
        print(line)
    loaded = load_weights(workdir, at_step, plan.abstract, plan.shardings)
    eval_step = step.compile_eval(task.make_evaluate(plan), plan)
    result = task.over_split(eval_step, loaded.params, loaded.model_state, source, plan)
    rows = [("step", loaded.step), *result.rows(config), ("labels", matched)]
    print(summary(f"{config.name} on {shown(config.data.source)}", rows))
    return {"step": loaded.step, "split": config.data.eval_split, **result.flat()}
