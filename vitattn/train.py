"""The training loop of the vision family, read downwards: model and mesh, data, restore, step and
evals, loop.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from trainlib.data.folders import once
from trainlib.data.order import data_position, split_facts
from trainlib.errors import DataError, Preempted
from trainlib.model import weights as nn
from trainlib.run import goodput, peers, watchdog
from trainlib.run import run as run_lib
from trainlib.run.curves import curves
from trainlib.run.interrupt import GivenUp, StopRequest
from trainlib.run.metric_writers import Writers
from trainlib.run.progress import Progress, duration
from trainlib.step import step
from trainlib.step import train_state as state_lib
from vitattn import plan as plan_lib
from vitattn.labels import class_names, matching
from vitattn.models.counts import forward_flops
from vitattn.start import transfer
from vitattn.task import Evaluation, task_of

# What a resumed run may not change: the meaning of the weights or of the data position.
FIXED = ("family", "task", "seed", "batch_size", "model.", "data.source", "data.holdout")


def run(config: ConfigDict, workdir: Path) -> int:
    """Trains `config` in `workdir`, or goes on from its newest checkpoint; returns the exit code.

    Raises:
      UserError: bad configuration (64), data (65) or checkpoint (66), numbers that went bad (70), a
        failing disk (74), or a request to stop, with everything saved (75).
    """
    started = time.monotonic()
    main_host = jax.process_index() == 0

    # ---------------------------------------------------------------- model and mesh
    plan = plan_lib.make(config)
    abstract, shardings = plan.abstract, plan.shardings
    devices = list(plan.mesh.devices.flat)

    # ---------------------------------------------------------------- data
    task = task_of(config)
    splits = task.open_training(plan)
    source, eval_source, names = splits.train, splits.held_out, splits.names
    run_lib.check_best(config, task.MEASURED)
    peers.agree(split_facts(train=source, held_out=eval_source), DataError)

    # ---------------------------------------------------------------- restore
    def position(number: int) -> dict[str, Any]:
        size, seed = config.batch_size, config.seed
        return data_position(number, size, seed, len(source), source.digest)

    checkpoints = run_lib.open_workdir(config, workdir, abstract)
    run_lib.agree_on_workdir(workdir, checkpoints)
    same_classes = functools.partial(matching.check_resume, names=names, workdir=workdir)
    like = plan.abstract_state()
    resumed = run_lib.resume(checkpoints, config, FIXED, position, like, same_classes)
    start = resumed.step if resumed else 0
    if resumed:
        state, changed = resumed.state, resumed.changed
        if start >= config.steps and not resumed.owes:
            checkpoints.close()
            run_lib.report_complete(workdir, start, config.steps)
            return 0
    else:
        changed = []
        state = state_lib.create(abstract, plan.optimizer, jax.random.key(config.seed), shardings)
        if config.init_from:
            state, taken = transfer.start(plan, state, names)
            if main_host:
                print(taken, flush=True)
    if main_host:
        run_lib.save_config(config, workdir)
        class_names.write(names, workdir)
        print(
            opening(config, abstract, plan.mesh, len(source), len(eval_source), start), flush=True
        )
        for line in once(source.left_out, eval_source.left_out):
            print(f"  {line}", flush=True)
        for line in changed:
            print(f"  changed since step {start}: {line}", flush=True)

    # ---------------------------------------------------------------- step and evals
    fields = task.fields(plan)
    train_step = step.compile_train(task.make_loss(plan), plan)
    eval_step = step.compile_eval(task.make_evaluate(plan), plan)

    def run_eval(state: state_lib.TrainState, between: Callable[[], object]) -> Evaluation:
        weights = state.ema or {**state.params, **state.model_state}
        params = {name: weights[name] for name in abstract.params}
        statistics = {name: weights[name] for name in abstract.model_state}
        return task.over_split(eval_step, params, statistics, eval_source, plan, between)

    # ---------------------------------------------------------------- loop
    size = plan.model.size
    peak = goodput.peak_rate(functools.partial(forward_flops, abstract, size), devices)
    progress = Progress(
        config.steps, start, config.batch_size, enabled=main_host, peak=peak, began=started
    )
    redo = "eval" if resumed and resumed.owes else ""
    writers = Writers(workdir, start, redo=redo) if main_host else None
    recorder = run_lib.Recorder(config, plan.schedule, progress, writers)
    result: Evaluation | None = None

    def evaluate_at(number: int) -> Evaluation | None:
        """What was measured; None when the run was asked to stop meanwhile."""
        recorder.flush()
        try:
            with progress.pause("evaluating"):
                measured = run_eval(state, stop.give_up)
        except GivenUp:
            return None
        if writers:
            writers.write(number, "eval", measured.flat())
        progress.message(f"step {number}: {measured.phrase()}")
        return measured

    def save(number: int) -> None:
        meta = run_lib.checkpoint_meta(config, position(number)) | class_names.to_meta(names)
        checkpoints.save(number, state, meta, result.flat() if result else None)

    with (
        contextlib.closing(progress),
        watchdog.follow(progress.beat),
        StopRequest() as stop,
        task.train_batches(plan, source, start) as batches,
        jax.transfer_guard("disallow"),
    ):
        number, stopping = start, False
        if resumed and resumed.owes:
            result = evaluate_at(start)
            stopping = result is None
            if result:
                checkpoints.add_metrics(start, result.flat())
        while number < config.steps and not stopping:
            number += 1
            with progress.waiting():
                batch = next(batches)
            batch = step.put_batch({name: batch[name] for name in fields}, plan.batch_sharding)
            state, sums = train_step(state, batch)
            recorder.record(number, sums)
            checkpoints.poll()
            if number == start + 1 and main_host:
                jax.block_until_ready(sums)
                progress.message(f"first step after {duration(time.monotonic() - started)}")
            last = number == config.steps
            stopping = not last and peers.stopping(number, stop.requested)
            result = None
            if run_lib.evaluates(config, number) and not stopping:
                result = evaluate_at(number)
                stopping = result is None
            if stopping or last or number % config.checkpoint.every == 0:
                recorder.flush()
                with progress.pause("saving"):
                    save(number)
                if writers:
                    writers.write(number, "goodput", goodput.values(progress))
        bad = batches.bad
        recorder.flush()
        with progress.pause("saving"):
            checkpoints.close()
    if writers:
        writers.close()
    if stopping:
        raise Preempted(
            f"Stopped on request after step {number} of {config.steps}. The state is saved in "
            f"{workdir}; the same command goes on from there."
        )
    if main_host and result:
        report(config, workdir, result, progress, time.monotonic() - started, number - start, bad)
    return 0


def opening(
    config: ConfigDict, abstract: nn.Abstract, mesh: Any, train: int, test: int, start: int
) -> str:
    """The lines that a run starts with."""
    device = mesh.devices.flat[0]
    lines = [
        f"{config.name}: {abstract.param_count:,} parameters, {config.model.dtype}",
        f"  data     {config.data.source}: {train:,} training and {test:,} evaluation images",
        f"  devices  {mesh.size} x {device.device_kind}, mesh {dict(mesh.shape)}",
        f"  steps    {config.steps} of {config.batch_size} images"
        + (f", going on from {start}" if start else ""),
    ]
    return "\n".join(lines)


def report(
    config: ConfigDict,
    workdir: Path,
    result: Evaluation,
    progress: Progress,
    seconds: float,
    steps: int,
    bad: list[tuple[str, str]],
) -> None:
    """Draws the curves, keeps and prints the summary of a finished run."""
    picture = curves(workdir)
    speed = progress.average().examples_per_second or 0.0
    rows = {
        **dict(result.rows(config)),
        "time": f"{duration(seconds)} for {steps} steps",
        "throughput": f"{speed:,.0f} images/s",
        **goodput.rows(progress, jax.devices()),
        "config": str(workdir / "config.json"),
        "metrics": f"{workdir / 'metrics.jsonl'}, {workdir / 'tensorboard'}",
        "curves": str(picture) if picture else "not drawn",
        "checkpoints": str(workdir / "checkpoints"),
    }
    if bad:
        named = "; ".join(f"{where}: {why}" for where, why in bad[:5])
        rows["unreadable"] = f"{len(bad)} images: {named}"
    run_lib.keep_summary(
        workdir, f"{config.name}: done", rows, {"step": config.steps, **result.flat()}
    )
