"""Evaluation over a whole split, and the command that runs it on a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from trainlib.errors import ConfigError, DataError, shown
from trainlib.formats import weight_source as weights
from trainlib.formats.load import load_weights
from trainlib.model import metrics
from trainlib.model import weights as nn_lib
from trainlib.run.progress import summary
from trainlib.step import step
from trainlib.step.plan import Plan
from vitattn.classification import objective as classify
from vitattn.data import eval_batches, make_source
from vitattn.data.source import Source
from vitattn.labels import class_names, matching
from vitattn.models import ModelConfig
from vitattn.models.counts import check_size
from vitattn.plan import make

MEASURED = ("loss", "top1", "top5")


def over_split(
    eval_step: Any,
    params: nn_lib.Arrays,
    model_state: nn_lib.Arrays,
    source: Source,
    plan: Plan[ModelConfig],
    between: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Loss, top-1 and top-5 (fractions) over every record of a split, and how many counted;
    `between` is called before each batch.
    """
    config, total = plan.config, None
    size = config.eval_batch_size or config.batch_size
    process, processes = jax.process_index(), jax.process_count()
    fields = classify.fields(plan)
    with eval_batches(source, config.data, size, process, processes, plan.model.size) as batches:
        for batch in batches:
            between()
            on_device = step.put_batch({name: batch[name] for name in fields}, plan.batch_sharding)
            sums = eval_step(params, model_state, on_device)
            total = metrics.merge(total, metrics.to_host(sums))
    assert total is not None
    return {**metrics.compute(total), "examples": int(total["top1"].count)}


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

    Raises:
      CheckpointError: there is no checkpoint, or not that one.
      ConfigError: a step of an export, or a directory for predictions.
      DataError: the data have a class that the model was not trained on.
    """
    if write_predictions is not None:
        raise ConfigError("--write_predictions is for runs of family moe.")
    if weights.is_export(workdir):
        check_size(config)
    plan = make(config)
    source = make_source(config.data, config.data.eval_split)
    for line in source.left_out:
        print(line)
    outputs = plan.model.num_classes
    at_step, kept = class_names.of_model(workdir, at_step, outputs)
    source, matched = matched_labels(source, kept, outputs, config, workdir)
    loaded = load_weights(workdir, at_step, plan.abstract, plan.shardings)
    eval_step = step.compile_eval(classify.make_evaluate(plan), plan)
    result = over_split(eval_step, loaded.params, loaded.model_state, source, plan)
    result = {"step": loaded.step, "split": config.data.eval_split, **result}
    rows = [*table(result), ("labels", matched)]
    print(summary(f"{config.name} on {shown(config.data.source)}", rows))
    return result


def matched_labels(
    source: Source,
    kept: class_names.ModelNames | None,
    outputs: int,
    config: ConfigDict,
    workdir: Path,
) -> tuple[Source, str]:
    """The data with the labels of the model's outputs, and a phrase that says how they were found.

    Raises:
      DataError: a class that the model was not trained on; or nothing says its classes, and there
        are not as many in the data.
    """
    what = config.data.source
    if kept is not None:
        found = matching.by_name(source, kept, what)
        return found, f"by name, {len(source.class_names)} of {len(kept.outputs)} classes"
    if source.num_classes != outputs:
        raise DataError(
            f"{shown(workdir)} does not say the names of its {outputs} classes, and {shown(what)} "
            f"has {source.num_classes}: which label is which output cannot be known. Write the "
            f"names to {shown(workdir / class_names.FILE)}, one a line, in the order of the "
            "outputs."
        )
    return source, "by number: the names of the model's classes are not known"


def table(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """Rows of a printed result."""
    return [
        ("step", result["step"]),
        ("images", f"{result['examples']:,} ({result['split']} split)"),
        ("top-1", f"{100 * result['top1']:.2f} %"),
        ("top-5", f"{100 * result['top5']:.2f} %"),
        ("loss", f"{result['loss']:.4f}"),
    ]
