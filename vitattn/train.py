"""The training loop of the vision family, read downwards: plan, data, loss, state, loop."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from trainlib.data.folders import once
from trainlib.data.order import split_facts
from trainlib.errors import DataError
from trainlib.model.weights import Arrays
from trainlib.run import peers
from trainlib.run.curves import curves
from trainlib.run.session import Session
from trainlib.run.workdir import check_best
from trainlib.step import step, train_state
from trainlib.step.ahead import compiled_ahead
from trainlib.step.plan import Plan, check_learns
from trainlib.step.profile import Steps
from trainlib.step.schedules import settle_epochs
from trainlib.step.step import Batch
from trainlib.step.train_state import TrainState
from vitattn.labels import class_names, matching
from vitattn.labels.class_names import Names
from vitattn.models import ModelConfig
from vitattn.models.counts import forward_flops
from vitattn.plan import abstract_batch, make
from vitattn.start import transfer
from vitattn.task import Evaluation, Splits, Task, task_of

# What a resumed run may not change: the meaning of the weights or of the data position.
FIXED = ("family", "task", "seed", "batch_size", "model.", "data.source", "data.holdout")
FIXED += ("data.repeats",)


def run(config: ConfigDict, workdir: Path, profile: Steps | None = None) -> int:
    """Trains `config` in `workdir`, or resumes from its newest checkpoint; returns the exit code.

    Args:
      config: resolved; `epochs` of it sets `steps` here.
      workdir: made when missing.
      profile: steps of which a trace is written into the workdir.

    Raises:
      UserError: bad configuration (64), data (65) or checkpoint (66), numbers that went bad (70), a
        failing disk (74), or a request to stop, with everything saved (75).
    """
    began = time.monotonic()

    # ---------------------------------------------------------------- plan and data
    plan, task = make(config), task_of(config)
    splits = task.open_training(plan)
    check_best(config, task.MEASURED)
    peers.agree(split_facts(train=splits.train, held_out=splits.held_out), DataError)
    if settle_epochs(config, len(splits.train)):
        plan = make(config)

    # ---------------------------------------------------------------- loss
    fields = task.fields(plan)
    train_step = step.compile_train(task.make_loss(plan), plan)
    eval_step = step.compile_eval(task.make_evaluate(plan), plan)

    # ---------------------------------------------------------------- state
    session = Session[Evaluation](
        plan,
        workdir,
        splits.train,
        fixed=FIXED,
        began=began,
        forward_flops=functools.partial(forward_flops, plan.abstract, plan.model.size),
        meta=class_names.to_meta(splits.names),
        check=functools.partial(matching.check_resume, names=splits.names, workdir=workdir),
        profile=profile,
    )
    if session.complete:
        return session.report_complete()
    # What a start from elsewhere refuses is said at once, and not after the compilation.
    if not (session.state or config.init_from):
        frozen = list(config.optimizer.frozen)
        check_learns(plan, {"optimizer.frozen": (frozen, [])})
        train_step = compiled_ahead(train_step, plan.abstract_state(), abstract_batch(plan))
    state = session.state or first_state(plan, splits.names)
    if session.main:
        class_names.write(splits.names, workdir)
    session.announce(opening(plan, splits, session.start))

    # ---------------------------------------------------------------- loop
    measure = functools.partial(evaluate_state, task, eval_step, splits, plan, session.give_up)
    with session.running(), task.train_batches(plan, splits.train, session.start) as batches:
        if session.eval_pending:
            with session.evaluating(session.start):
                session.result = measure(state)
        for number, batch in session.steps(batches):
            on_devices = step.put_batch({n: batch[n] for n in fields}, plan.batch_sharding)
            state, sums = train_step(state, on_devices)
            session.record(number, sums)
            if session.eval_due(number):
                with session.evaluating(number):
                    session.result = measure(state)
            if session.save_due(number):
                session.save(number, state)
    if session.main:
        report(session, batches.bad)
    return 0


def first_state(plan: Plan[ModelConfig], names: Names) -> TrainState:
    """The state before the first step: new weights, or those that `init_from` names."""
    key = jax.random.key(plan.config.seed)
    state = train_state.create(plan.abstract, plan.optimizer, key, plan.shardings)
    if plan.config.init_from:
        state, taken = transfer.start(plan, state, names)
        if jax.process_index() == 0:
            print(taken, flush=True)
    return state


def evaluate_state(
    task: Task,
    eval_step: Callable[[Arrays, Arrays, Batch], Any],
    splits: Splits,
    plan: Plan[ModelConfig],
    between: Callable[[], object],
    state: TrainState,
) -> Evaluation:
    """Evaluates the weights of a state, their moving averages where it has any."""
    weights = state.evaluated
    params = {name: weights[name] for name in plan.abstract.params}
    statistics = {name: weights[name] for name in plan.abstract.model_state}
    return task.over_split(eval_step, params, statistics, splits.held_out, plan, between)


def opening(plan: Plan[ModelConfig], splits: Splits, start: int) -> str:
    """The lines that a run starts with."""
    config, mesh, train, held_out = plan.config, plan.mesh, splits.train, splits.held_out
    resumed = f", going on from {start}" if start else ""
    epochs = f" ({config.epochs:g} epoch{'s' * (config.epochs != 1)})" if config.epochs else ""
    lines = [
        f"{config.name}: {plan.abstract.param_count:,} parameters, {config.model.dtype}",
        f"  data     {config.data.source}: {len(train):,} training and {len(held_out):,} "
        "evaluation images",
        f"  devices  {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {dict(mesh.shape)}",
        f"  steps    {config.steps} of {config.batch_size} images{epochs}{resumed}",
        *(f"  {line}" for line in once(train.left_out, held_out.left_out)),
    ]
    return "\n".join(lines)


def report(session: Session[Evaluation], unreadable: list[tuple[str, str]]) -> None:
    """Draws the curves, prints the summary of a finished run and keeps it."""
    result = session.result
    assert result is not None, "the last step is always evaluated"
    picture = curves(session.workdir)
    speed = session.progress.average().examples_per_second or 0.0
    session.report(
        dict(result.rows(session.config)),
        throughput=f"{speed:,.0f} images/s",
        pictures={"curves": str(picture) if picture else "not drawn"},
        unreadable=unreadable,
        unit="images",
        figures=result.flat(),
    )
