"""Measures the held-out split of a run: the loop over its batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax

from moe.data import eval_batches
from moe.data.sources.packing import batch_fields
from moe.data.sources.source import Source
from moe.eval.evaluation import PART, Evaluation
from moe.eval.measured import Measured, Predicted
from moe.eval.scores import Scores
from moe.eval.tasks import Tasks
from moe.models.architecture import Architecture
from trainlib.errors import ConfigError
from trainlib.model import metrics
from trainlib.model.weights import Arrays
from trainlib.step import step
from trainlib.step.plan import Plan
from trainlib.step.step import Batch, Sums

EvalStep = Callable[[Arrays, Arrays, Batch], tuple[Sums, object]]
FIGURES = ("cross_entropy", "accuracy")


def over_split(
    eval_step: EvalStep,
    weights: Arrays,
    source: Source,
    plan: Plan[Architecture],
    *,
    unigram: float,
    tasks: Tasks | None = None,
    between: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Cross-entropy, accuracy and router metrics over a split, and the scores of tasks.

    Args:
      eval_step: `step.compile_eval(objective.make_evaluate(plan), plan)`.
      weights: of the model, with the state of its routers (`train_state.weights`).
      source: the split.
      plan: of the run.
      unigram: `unigram_entropy` of the target tokens of the split.
      tasks: what is answered as well.
      between: called before each batch and after each answer; what it raises ends the evaluation.
    """
    parts: dict[str, Predicted] = {}
    whole, routers = Predicted(0.0, 0.0, 0), None
    for part, rate in source.parts():
        measured, tokens = _over_part(eval_step, weights, part, plan, between)
        scalars = measured.scalars
        parts[part.name] = Predicted(scalars["cross_entropy"], scalars["accuracy"], tokens)
        whole = whole.plus(rate, parts[part.name])
        routers = measured.routers.weighted(rate, routers)
    assert routers is not None, "a source has at least one part"
    scores = Scores()
    if tasks is not None:
        scores = tasks.score(tasks.answers(weights, lambda count: between()))
    is_mixture = len(source.parts()) > 1
    return Evaluation(whole, parts if is_mixture else {}, routers, unigram, scores)


def _over_part(
    eval_step: EvalStep,
    weights: Arrays,
    source: Source,
    plan: Plan[Architecture],
    between: Callable[[], object],
) -> tuple[Measured, int]:
    """The values of a source that is no mixture, and how many tokens it has."""
    config, total = plan.config, None
    held = plan.abstract.split(weights)
    size = config.eval_batch_size or config.batch_size
    process = jax.process_index(), jax.process_count()
    fields = batch_fields(plan.model.kind)
    with eval_batches(source, config.data, size, *process) as batches:
        for batch in itertools.islice(batches, config.eval_batches or None):
            between()
            on_device = step.put_batch({name: batch[name] for name in fields}, plan.batch_sharding)
            sums, _ = eval_step(*held, on_device)
            total = metrics.merge(total, metrics.to_host(sums))
    assert total is not None, "a split has at least one batch"
    return Measured.of(total, plan.model.all_sparse_blocks), int(total["cross_entropy"].count)


def figure_names(source: Source | None, tasks: Tasks | None, holdout: float) -> list[str]:
    """Names of the figures that evaluations of a run give, before there is one.

    Args:
      source: what is held out; None where nothing is.
      tasks: that are scored.
      holdout: the share that was to be held out.

    Raises:
      ConfigError: nothing is held out, and so nothing measured.
    """
    if source is None and holdout:
        raise ConfigError(
            f"checkpoint.best keeps the best evaluation, and data.holdout={holdout:g} leaves "
            "nothing to evaluate on: every task has one input, on which it is trained. Give rows "
            "of other inputs, in a file of their own with --config.data.validation=FILE if you "
            "like, or evaluate nothing: --config.data.holdout=0 --config.checkpoint.best=."
        )
    if source is None:
        raise ConfigError(
            "checkpoint.best keeps the best evaluation, and data.holdout=0 leaves nothing to "
            "evaluate on. Unset it with --config.checkpoint.best=, or hold a part out: "
            "--config.data.holdout=0.01."
        )
    parts: Sequence[str] = [part.name for part, _ in source.parts()]
    of_parts = [f"{PART}{part}/{name}" for part in parts for name in FIGURES]
    scores = tasks.figure_names() if tasks else []
    return [*FIGURES, *(of_parts if len(parts) > 1 else []), *scores]
