"""The command that evaluates a checkpoint: on the held-out split, or on the tasks of a fine-tuning
run.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from moe import objective
from moe import plan as plan_lib
from moe.data import check_vocabulary, make_source, unigram_entropy
from moe.eval import held_out, submission
from moe.eval.tasks import Tasks
from moe.models.architecture import Architecture
from moe.pairs import files as pairs
from trainlib.errors import ConfigError
from trainlib.formats.load import load_weights
from trainlib.model.weights import Arrays
from trainlib.run.progress import Progress, duration, summary
from trainlib.step.plan import Plan
from trainlib.step.step import compile_eval


def run(
    config: ConfigDict,
    workdir: Path,
    at_step: int | None = None,
    write_predictions: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run and prints the result: on its held-out split, or, after
    fine-tuning, on its tasks.

    Args:
      config: the configuration of the run.
      workdir: where its checkpoints are, or a directory that `launch.export` wrote.
      at_step: which step; None is the newest.
      write_predictions: directory for the answers to all tasks, in the form of leader boards.

    Raises:
      CheckpointError: there is no checkpoint, or not that one.
      ConfigError: predictions of a run that has no tasks, or over those of another evaluation.
      StorageError: predictions that cannot be written.
    """
    plan = plan_lib.make(config)
    if write_predictions is not None and config.task != "finetune":
        raise ConfigError(
            f"--write_predictions writes answers to tasks, and {workdir} is a run of "
            f"task={config.task!r}. Give the --workdir of a fine-tuning run."
        )
    if write_predictions is not None and jax.process_index() == 0:
        submission.prepare(write_predictions)
    loaded = load_weights(workdir, at_step, plan.abstract, plan.shardings)
    if config.task == "finetune":
        return score_tasks(plan, loaded.weights, loaded.step, write_predictions)
    source = make_source(config.data, "holdout")
    check_vocabulary(source.vocabulary, plan.model.vocab_size)
    for note in source.notes:
        print(note, flush=True)
    unigram = unigram_entropy(source.target_counts())
    eval_step = compile_eval(objective.make_evaluate(plan), plan)
    result = held_out.over_split(eval_step, loaded.weights, source, plan, unigram=unigram)
    rows = [("step", loaded.step), *result.rows(config)]
    print(summary(f"{config.name} on {config.data.source}, held out", rows))
    return {"step": loaded.step, **result.everything()}


def score_tasks(
    plan: Plan[Architecture], weights: Arrays, number: int, write_predictions: Path | None
) -> dict[str, Any]:
    """Scores all tasks of a configuration, prints their table and writes their predictions."""
    config = plan.config
    tasks = Tasks(plan)
    started = time.monotonic()
    main_host = jax.process_index() == 0
    with contextlib.closing(Progress(tasks.count, enabled=main_host, unit="example")) as progress:
        answers = tasks.answers(weights, progress.update)
    scores = tasks.score(answers)
    rows = [("step", str(number)), *tasks.rows(scores)]
    if tasks.own:
        rows += [("leak", line) for line in pairs.leaks(config.data)]
    rows.append(("answered", f"{tasks.count:,} in {duration(time.monotonic() - started)}"))
    if write_predictions is not None and main_host:
        written = submission.write(write_predictions, tasks.examples, answers, tasks.own)
        rows.append(("predictions", ", ".join(map(str, written)) or "none"))
        if lacking := submission.missing(tasks.examples.keys() - tasks.own.keys(), tasks.split):
            rows.append(("no submission", lacking))
    if main_host:
        print(summary(f"{config.name} on {config.data.source}, {tasks.split}", rows))
    return {"step": number, "split": tasks.split, **scores.flat()}
