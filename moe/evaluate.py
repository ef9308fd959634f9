"""Evaluation on the held-out split, and the command that runs it on a checkpoint."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from moe import objective as pretrain
from moe import plan as plan_lib
from moe.data import check_vocabulary, eval_batches, make_source, unigram_entropy
from moe.data.sources import Source
from moe.eval import submission
from moe.eval import tasks as tasks_lib
from moe.plan import Plan
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import CheckpointError, ConfigError
from trainlib.formats import weight_source as weights
from trainlib.model import metrics
from trainlib.model import weights as nn
from trainlib.run.progress import Progress, duration, summary
from trainlib.step import step

TOKENS, UNIGRAM = "tokens", "unigram_entropy"
PART = "part/"  # prefix of what is measured of the parts of a mixture: part/SOURCE/NAME
WHOLE = ("cross_entropy", "accuracy")
OF_PARTS = (*WHOLE, TOKENS)


def over_split(
    eval_step: Any,
    params: nn.Arrays,
    source: Source,
    plan: Plan,
    between: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Cross-entropy, accuracy and router metrics over a split, and how many tokens were predicted.

    Of a mixture they are the means over its parts, weighted by its rates as its unigram entropy is;
    those of a part itself are `part/SOURCE/NAME`.

    Args:
      eval_step: `plan.eval_step()`.
      params: weights.
      source: the split.
      plan: of the run.
      between: called before each batch.
    """
    result: dict[str, float] = {TOKENS: 0}
    total: dict[str, float] = {}
    parts = source.parts()
    for part, rate in parts:
        measured = _over_part(eval_step, params, part, plan, between)
        result[TOKENS] += measured[TOKENS]
        if len(parts) > 1:
            result |= {f"{PART}{part.name}/{name}": measured[name] for name in OF_PARTS}
        for name, value in measured.items():
            total[name] = total.get(name, 0.0) + rate * value
    return {**total, **result}


def _over_part(
    eval_step: Any, params: nn.Arrays, source: Source, plan: Plan, between: Callable[[], object]
) -> dict[str, float]:
    """The same over a source that is no mixture."""
    config, total = plan.config, None
    size = config.eval_batch_size or config.batch_size
    place = jax.process_index(), jax.process_count()
    fields = pretrain.fields(plan.model.kind)
    with eval_batches(source, config.data, size, *place) as batches:
        for batch in itertools.islice(batches, config.eval_batches or None):
            between()
            on_device = step.put_batch({name: batch[name] for name in fields}, plan.rows)
            total = metrics.merge(total, metrics.to_host(eval_step(params, {}, on_device)))
    assert total is not None
    tokens = int(total["cross_entropy"].count)
    return {**pretrain.values_of(total, plan.blocks), TOKENS: tokens}


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
      workdir: where its checkpoints are.
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
    number, params, _ = load_weights(plan, workdir, at_step)
    if config.task == "finetune":
        return score_tasks(plan, params, number, write_predictions)
    source = make_source(config.data, "holdout")
    check_vocabulary(source.vocabulary, plan.model.vocab_size)
    for note in source.notes:
        print(note, flush=True)
    result = over_split(plan.eval_step(), params, source, plan)
    result = {"step": number, **result, UNIGRAM: unigram_entropy(source.target_counts())}
    rows = [("step", number), *table(result), *part_rows(result), *router_rows(result, plan)]
    print(summary(f"{config.name} on {config.data.source}, held out", rows))
    return result


def score_tasks(
    plan: Plan, params: nn.Arrays, number: int, write_predictions: Path | None
) -> dict[str, Any]:
    """Scores all tasks of a configuration, prints their table and writes their predictions."""
    config = plan.config
    tasks = tasks_lib.Tasks(plan)
    started = time.monotonic()
    main_host = jax.process_index() == 0
    with contextlib.closing(Progress(tasks.count, enabled=main_host, unit="example")) as progress:
        answers = tasks.answers(params, progress.update)
    scores = tasks.score(answers)
    rows = [("step", str(number)), *tasks.rows(scores)]
    rows.append(("answered", f"{tasks.count:,} in {duration(time.monotonic() - started)}"))
    if write_predictions is not None and main_host:
        written = submission.write(write_predictions, tasks.examples, answers)
        rows.append(("predictions", ", ".join(map(str, written)) or "none"))
        if lacking := submission.missing(tasks.examples, tasks.split):
            rows.append(("no submission", lacking))
    if main_host:
        print(summary(f"{config.name} on {config.data.source}, {tasks.split}", rows))
    return {"step": number, "split": tasks.split, **tasks_lib.flat(scores)}


def figures(result: Mapping[str, float]) -> dict[str, float]:
    """What an evaluation measured of the whole model. Single routers are in the training lines of
    `metrics.jsonl` and TensorBoard for every step, constants in the summary.
    """
    return {
        name: value
        for name, value in result.items()
        if name in WHOLE
        or name.startswith(tasks_lib.SCORE)
        or (name.startswith(PART) and name.endswith(WHOLE))
    }


def measured(source: Source | None, tasks: tasks_lib.Tasks | None) -> list[str]:
    """Names of the figures that evaluations of a run give, before there is one.

    Raises:
      ConfigError: nothing is held out, and so nothing measured.
    """
    if source is None:
        raise ConfigError(
            "checkpoint.best keeps the best evaluation, and data.holdout=0 leaves nothing to "
            "evaluate on. Unset checkpoint.best, or hold a part out: --config.data.holdout=0.01."
        )
    parts = [part.name for part, _ in source.parts()]
    of_parts = [f"{PART}{part}/{name}" for part in parts for name in WHOLE]
    silent = {name: [""] * len(found) for name, found in tasks.examples.items()} if tasks else {}
    scores = tasks_lib.flat(tasks.score(silent)) if tasks else {}
    return [*WHOLE, *(of_parts if len(parts) > 1 else ()), *scores]


def table(result: Mapping[str, float]) -> list[tuple[str, str]]:
    """Rows of a printed result."""
    loss, unigram = result["cross_entropy"], result[UNIGRAM]
    side = "below" if loss <= unigram else "above: context was not used yet"
    return [
        ("cross-entropy", f"{loss:.4f} nats a token on {int(result[TOKENS]):,} tokens"),
        (
            "unigram entropy",
            f"{unigram:.4f} nats; cross-entropy is {abs(unigram - loss):.4f} {side}",
        ),
        ("token accuracy", f"{100 * result['accuracy']:.2f} %"),
    ]


def part_rows(result: Mapping[str, float]) -> list[tuple[str, str]]:
    """Rows of a printed result for the parts of a mixture."""
    found: dict[str, dict[str, float]] = {}
    for name, value in result.items():
        if name.startswith(PART):
            part, _, measured = name.removeprefix(PART).rpartition("/")
            found.setdefault(part, {})[measured] = value
    return [
        (
            part,
            f"cross-entropy {own['cross_entropy']:.4f}, accuracy {100 * own['accuracy']:.2f} % on "
            f"{int(own[TOKENS]):,} tokens",
        )
        for part, own in found.items()
    ]


def loads(result: Mapping[str, float], plan: Plan) -> dict[str, np.ndarray]:
    """`STACK.BLOCK` of each sparse block -> share of the choices sent that each expert got [E]."""
    routing = plan.model.routing
    return {
        f"{stack}.{block}": np.array(
            [
                result[f"{pretrain.ROUTER}/{stack}.{block}/load_{expert}"]
                for expert in range(routing.num_experts)
            ]
        )
        for stack, blocks in plan.blocks.items()
        if routing is not None
        for block in blocks
    }


def router_rows(result: Mapping[str, float], plan: Plan) -> list[tuple[str, str]]:
    """One row for each sparse block: load of its experts, dropped tokens, entropy of its router."""
    rows = []
    for place, load in loads(result, plan).items():
        values = {
            n: result[f"{pretrain.ROUTER}/{place}/{n}"] for n in ("dropped_choices", "entropy")
        }
        shares = " ".join(f"{100 * share:.0f}" for share in load)
        if len(load) > 8:
            shares = f"{100 * load.min():.1f} to {100 * load.max():.1f}"
        rows.append(
            (
                f"router {place}",
                f"load {shares} %, dropped {100 * values['dropped_choices']:.1f} %, "
                f"entropy {values['entropy']:.2f} of {np.log(len(load)):.2f}",
            )
        )
    return rows


def load_weights(plan: Plan, workdir: Path, at_step: int | None) -> tuple[int, nn.Arrays, str]:
    """Step and weights of a run, or of a directory that `launch.export` wrote, and what tells these
    weights from others.

    Raises:
      CheckpointError: there is no checkpoint, or not that one.
    """
    places = plan.shardings.params
    if weights.is_export(workdir):
        source = weights.open_weights(workdir, plan.abstract, at_step)
        params = {name: jax.device_put(value, places[name]) for name, value in source.leaves()}
        return source.step, params, f"{workdir.resolve()} {source.origin}"
    with contextlib.closing(checkpoint.Checkpoints(workdir / "checkpoints")) as checkpoints:
        number = checkpoints.pick(at_step)
        digests = [
            (name, leaf.digest) for name, leaf in checkpoints.manifest(number).leaves.items()
        ]
        return number, read_params(checkpoints, number, plan.abstract, places), repr(digests)


def read_params(
    checkpoints: checkpoint.Checkpoints,
    number: int,
    abstract: nn.Abstract,
    shardings: Mapping[str, NamedSharding],
) -> nn.Arrays:
    """Reads the weights of a step, and nothing else of it.

    Raises:
      CheckpointError: the step holds another model; names what differs.
    """
    stored = checkpoints.shapes(number)
    wanted = {f"params/{name}": spec for name, spec in abstract.params.items()}
    wrong = [
        f"{name} {spec.shape}"
        for name, spec in wanted.items()
        if name not in stored or tuple(stored[name].shape) != spec.shape
    ]
    if wrong:
        raise CheckpointError(
            f"Step {number} in {checkpoints.directory} holds another model: it has no "
            f"{', '.join(wrong[:5])}. Give the configuration that it was trained with (config.json "
            "beside the checkpoints)."
        )
    structs = {
        name: jax.ShapeDtypeStruct(
            spec.shape, spec.dtype, sharding=shardings[name.removeprefix("params/")]
        )
        for name, spec in wanted.items()
    }
    read = checkpoints.restore_some(number, structs)
    return {name.removeprefix("params/"): value for name, value in read.items()}
