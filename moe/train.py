"""The training loop of the mixture-of-experts family, read downwards: model and mesh, data,
restore, step, evals, loop.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from moe import describe, objective, sweep
from moe import plan as plan_lib
from moe.analysis import plots
from moe.data import check_vocabulary, evaluates, make_source, train_batches, unigram_entropy
from moe.data.sources.examples import Examples
from moe.data.sources.source import Source
from moe.eval import held_out
from moe.eval.evaluation import Evaluation
from moe.eval.measured import Measured
from moe.eval.tasks import Tasks
from moe.models.architecture import Architecture
from moe.start import finetune, upcycle
from trainlib.data.order import data_position, split_facts
from trainlib.errors import DataError, Preempted
from trainlib.run import goodput, peers, watchdog
from trainlib.run import run as run_lib
from trainlib.run.curves import curves
from trainlib.run.interrupt import GivenUp, StopRequest
from trainlib.run.metric_writers import Writers
from trainlib.run.progress import Progress, duration
from trainlib.step import step
from trainlib.step import train_state as state_lib
from trainlib.step.plan import Plan

# What a resumed run may not change: the meaning of the weights or of the data position.
FIXED = (
    "family",
    "task",
    "seed",
    "batch_size",
    "model.d_model",
    "model.d_ff",
    "model.num_heads",
    "model.head_dim",
    "model.kind",
    "model.vocab_size",
    "model.activation",
    "model.sparse",
    "model.extra_ffn",
    "model.tie_word_embeddings",
    "model.encoder_blocks",
    "model.decoder_blocks",
    "model.expert_bias",
    "model.relative_attention",
    "model.decoder_sparse_period",
    "model.partial_period",
    "model.router_input",
    "model.norm_scale",
    "model.residual_scale",
    "routing.num_experts",
    "routing.top_k",
    "data.source",
    "data.parts",
    "data.vocabulary",
    "data.extra_ids",
    "data.encoder_length",
    "data.decoder_length",
    "upcycle.",
    "data.objective",
    "data.sentinels",
    "finetune.train",
    "finetune.router_with_moe",
)


def run(config: ConfigDict, workdir: Path) -> int:
    """Trains `config` in `workdir`, or goes on from its newest checkpoint; returns the exit code.

    Raises:
      UserError: bad configuration (64), data (65) or checkpoint (66), numbers that went bad (70), a
        failing disk (74), or a request to stop, with everything saved (75).
    """
    started = time.monotonic()
    main_host = jax.process_index() == 0
    if not sweep.settle(config):
        return 0

    # ---------------------------------------------------------------- model and mesh
    plan = plan_lib.make(config)
    finetune.check(plan)
    fields, devices = objective.fields(plan), list(plan.mesh.devices.flat)

    # ---------------------------------------------------------------- data
    source = make_source(config.data, "train")
    # data.holdout=0 keeps nothing back, and then nothing is evaluated.
    eval_source = make_source(config.data, "holdout") if evaluates(config.data) else None
    check_vocabulary(source.vocabulary, plan.model.vocab_size)
    unigram = unigram_entropy((eval_source or source).target_counts())
    limit = config.evaluation.limit
    tasks = Tasks(plan, limit) if config.task == "finetune" else None
    if config.checkpoint.best:
        run_lib.check_best(config, held_out.figure_names(eval_source, tasks))
    splits = {"train": source} | ({} if eval_source is None else {"held_out": eval_source})
    peers.agree(split_facts(**splits), DataError)

    # ---------------------------------------------------------------- restore
    def position(number: int) -> dict[str, Any]:
        size, seed = config.batch_size, config.seed
        return data_position(number, size, seed, len(source), source.digest)

    checkpoints = run_lib.open_workdir(config, workdir, plan.abstract)
    run_lib.agree_on_workdir(workdir, checkpoints)
    like = state_lib.abstract_state(plan.abstract, plan.optimizer, plan.shardings)
    resumed = run_lib.resume(checkpoints, config, FIXED, position, like)
    start = resumed.step if resumed else 0
    owes = resumed is not None and resumed.owes and eval_source is not None
    if resumed:
        state, changed = resumed.state, resumed.changed
        if start >= config.steps and not owes:
            checkpoints.close()
            run_lib.report_complete(workdir, start, config.steps)
            return 0
    else:
        changed = []
        key, told = jax.random.key(config.seed), ""
        create = functools.partial(
            state_lib.create, plan.abstract, plan.optimizer, key, plan.shardings
        )
        if config.upcycle.workdir:
            state, told = upcycle.start(plan, create())
        elif config.init_from:
            state, told = finetune.start(plan, create())
        else:
            state = create()
        if told and main_host:
            print(told, flush=True)
    if main_host:
        run_lib.save_config(config, workdir)
        print(opening(plan, source, eval_source, unigram, start), flush=True)
        for line in changed:
            print(f"  changed since step {start}: {line}", flush=True)

    # ---------------------------------------------------------------- step and evals
    train_step = step.compile_train(objective.make_loss(plan), plan)
    eval_step = step.compile_eval(objective.make_evaluate(plan), plan)

    def run_eval(between: Callable[[], object]) -> Evaluation:
        assert eval_source is not None
        return held_out.over_split(
            eval_step,
            state.params,
            eval_source,
            plan,
            unigram=unigram,
            tasks=tasks,
            between=between,
        )

    # ---------------------------------------------------------------- loop
    lengths = config.data.encoder_length, config.data.decoder_length
    peak = goodput.peak_rate(
        functools.partial(describe.forward_flops, plan.model, *lengths), devices
    )
    progress = Progress(
        config.steps, start, config.batch_size, enabled=main_host, peak=peak, began=started
    )
    redo = "eval" if owes else ""
    writers = Writers(workdir, start, redo=redo) if main_host else None
    recorder = run_lib.Recorder(
        config,
        plan.schedule,
        progress,
        writers,
        shown=("cross_entropy", "accuracy"),
        values_of=lambda sums: Measured.of(sums, plan.model.all_sparse_blocks).flat(),
    )
    result: Evaluation | None = None
    place = jax.process_index(), jax.process_count()

    def evaluate_at(number: int) -> Evaluation | None:
        """What was measured; nothing when the run was asked to stop meanwhile."""
        recorder.flush()
        try:
            with progress.pause("evaluating"):
                found = run_eval(stop.give_up)
        except GivenUp:
            return None
        if writers:
            writers.write(number, "eval", found.flat())
        progress.message(f"step {number}: " + found.phrase())
        return found

    def save(number: int) -> None:
        meta = run_lib.checkpoint_meta(config, position(number))
        checkpoints.save(number, state, meta, result.flat() if result else None)

    with (
        contextlib.closing(progress),
        watchdog.follow(progress.beat),
        StopRequest() as stop,
        train_batches(
            source, config.data, config.batch_size, config.seed, start, *place
        ) as batches,
        jax.transfer_guard("disallow"),
    ):
        number, stopping = start, False
        if owes:
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
            measuring = eval_source is not None and run_lib.evaluates(config, number)
            if measuring and not stopping:
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
    if main_host:
        report(plan, workdir, result, progress, time.monotonic() - started, number - start, bad)
    return 0


def opening(
    plan: Plan[Architecture], source: Source, held_out: Source | None, unigram: float, start: int
) -> str:
    """The lines that a run starts with."""
    config, mesh = plan.config, plan.mesh
    rows = " + ".join(map(str, plan_lib.lengths(plan).values()))
    kept = "no" if held_out is None else f"{len(held_out):,}"
    none = "  held out nothing (data.holdout=0): nothing is evaluated"
    lines = [
        f"{config.name}: {plan.abstract.param_count:,} parameters, {config.model.dtype}",
        f"  data     {config.data.source}: {len(source):,} training and {kept} held-out "
        f"rows of {rows} tokens",
        *([none] if held_out is None else []),
        *(f"  {note}" for note in source.notes),
        *truncated(config.data, source),
        f"  targets  unigram entropy {unigram:.4f} nats: what ignoring all context can reach",
        f"  routing  {describe.routing(plan.model)}",
        f"  devices  {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {dict(mesh.shape)}",
        f"  steps    {config.steps} of {config.batch_size} rows"
        + (f", going on from {start}" if start else ""),
    ]
    return "\n".join(lines)


def truncated(data: ConfigDict, source: Source) -> list[str]:
    """A line that says how many training pairs lose their end; none for running text."""
    fits = data.encoder_length - 1, data.decoder_length - 1  # and EOS
    # What makes room for sentinels has been cut already, and fills the encoder, as others may.
    limits = fits[0] - bool(data.sentinels), fits[1]
    parts = [part for part, _ in source.parts() if isinstance(part, Examples)]
    inputs, targets, pairs = sum((part.longer(*limits) for part in parts), np.zeros(3, np.int64))
    if not pairs:
        return []
    most = "up to " if data.sentinels else ""
    return [
        f"  cut      {most}{inputs:,} of {pairs:,} training inputs (limit {fits[0]:,} tokens), "
        f"{targets:,} targets (limit {fits[1]:,})"
    ]


def report(
    plan: Plan[Architecture],
    workdir: Path,
    result: Evaluation | None,
    progress: Progress,
    seconds: float,
    steps: int,
    bad: list[tuple[str, str]],
) -> None:
    """Draws the curves and the expert load, keeps and prints the summary of a finished run."""
    config = plan.config
    loads = result.routers.loads() if result else {}
    pictures = curves(workdir), plots.expert_load(workdir, loads)
    speed = progress.average().examples_per_second or 0.0
    tokens = next(iter(plan_lib.lengths(plan).values()))  # of the encoder, where there is one
    measured = {"evaluation": "none: data.holdout=0 holds nothing out"}
    if result is not None:
        measured = dict(result.rows(config))
    rows = {
        **measured,
        "time": f"{duration(seconds)} for {steps} steps",
        "throughput": f"{speed:,.1f} rows/s, {speed * tokens:,.0f} tokens/s",
        **goodput.rows(progress, jax.devices()),
        "config": str(workdir / "config.json"),
        "metrics": f"{workdir / 'metrics.jsonl'}, {workdir / 'tensorboard'}",
        "pictures": ", ".join(str(path) for path in pictures if path) or "not drawn",
        "checkpoints": str(workdir / "checkpoints"),
    }
    if bad:
        named = "; ".join(f"{where}: {why}" for where, why in bad[:5])
        rows["unreadable"] = f"{len(bad)} records: {named}"
    figures = {"step": config.steps} | (result.everything() if result else {})
    run_lib.keep_summary(workdir, f"{config.name}: done", rows, figures)
