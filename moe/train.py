"""The training loop of the language models, read downwards: plan, data, loss, state, loop."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from moe import describe, objective, sweep
from moe.analysis import plots
from moe.data import check_vocabulary, evaluates, make_source, train_batches, unigram_entropy
from moe.data.sources.examples import Examples
from moe.data.sources.source import Source
from moe.eval import held_out
from moe.eval.evaluation import Evaluation
from moe.eval.measured import Measured
from moe.eval.tasks import Tasks
from moe.models.architecture import Architecture
from moe.observatory import watch
from moe.observatory.probe import Probe
from moe.pairs import files as pairs
from moe.plan import abstract_batch, lengths, make
from moe.start import finetune, upcycle
from trainlib.data.order import split_facts
from trainlib.errors import DataError
from trainlib.model.weights import Arrays
from trainlib.run import peers
from trainlib.run.curves import curves
from trainlib.run.session import Session
from trainlib.run.workdir import check_best
from trainlib.step import step, train_state
from trainlib.step.ahead import compiled_ahead
from trainlib.step.plan import Plan
from trainlib.step.profile import Steps
from trainlib.step.schedules import settle_epochs
from trainlib.step.step import Sums
from trainlib.step.train_state import TrainState

# What a resumed run may not change: the meaning of the weights or of the data position.
FIXED = (
    "family",
    "task",
    "seed",
    "batch_size",
    "model.d_model",
    "model.d_ff",
    "model.expert_d_ff",
    "model.shared_experts",
    "model.num_heads",
    "model.head_dim",
    "model.kind",
    "model.vocab_size",
    "model.activation",
    "model.sparse_",  # all keys that begin so
    "model.extra_ffn",
    "model.decoder_extra_ffn",
    "model.tie_word_embeddings",
    "model.encoder_blocks",
    "model.decoder_blocks",
    "model.expert_bias",
    "model.relative_attention",
    "model.decoder_sparse_period",
    "model.partial_period",
    "model.router_input",
    "model.router_history",
    "model.expert_embedding",
    "model.norm_scale",
    "model.residual_scale",
    "routing.num_experts",
    "routing.top_k",
    "routing.scores",
    "routing.balance_bias",
    "data.source",
    "data.parts",
    "data.pretraining_",
    "data.vocabulary",
    "data.extra_ids",
    "data.encoder_length",
    "data.decoder_length",
    "upcycle.",
    "data.objective",
    "data.mode_tokens",
    "data.sentinels",
    "finetune.train",
    "finetune.router_with_moe",
    "finetune.frozen_dtype",
    "finetune.lora.",
)


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
    if not sweep.settle(config):
        return 0

    # ---------------------------------------------------------------- plan and data
    plan = make(config)
    finetune.check(plan)
    data = open_data(plan)
    if settle_epochs(config, len(data.source)):
        plan = make(config)

    # ---------------------------------------------------------------- loss
    fields = objective.fields(plan)
    train_step = step.compile_train(objective.make_loss(plan), plan)
    eval_step = step.compile_eval(objective.make_evaluate(plan), plan)

    # ---------------------------------------------------------------- state
    session = Session[Evaluation](
        plan,
        workdir,
        data.source,
        fixed=FIXED,
        began=began,
        forward_flops=functools.partial(
            describe.forward_flops,
            plan.model,
            config.data.encoder_length,
            config.data.decoder_length,
        ),
        evaluates=data.held_out is not None,
        shown=("cross_entropy", "accuracy"),
        values_of=functools.partial(step_values, plan.model),
        watching=functools.partial(watch.routers, config, plan.model),
        profile=profile,
    )
    if session.complete:
        return session.report_complete()
    if not (session.state or config.init_from or config.upcycle.workdir):
        finetune.check_learns(plan)
        # With those, what is refused is said before anything is compiled.
        train_step = compiled_ahead(train_step, plan.abstract_state(), abstract_batch(plan))
    state = session.state or first_state(plan)
    session.announce(opening(plan, data, session.start))

    # ---------------------------------------------------------------- loop
    measure = functools.partial(over_held_out, eval_step, data, plan, session.give_up)
    probe = Probe(eval_step, plan, data.held_out)
    with (
        session.running(),
        train_batches(
            data.source,
            config.data,
            config.batch_size,
            config.seed,
            session.start,
            jax.process_index(),
            jax.process_count(),
        ) as batches,
    ):
        if session.start:
            probe.begin(state.weights)
        if session.eval_pending:
            with session.evaluating(session.start):
                session.result = measure(state.evaluated)
        for number, batch in session.steps(batches):
            on_devices = step.put_batch({n: batch[n] for n in fields}, plan.batch_sharding)
            state, sums = train_step(state, on_devices)
            session.record(number, sums)
            if session.eval_due(number):
                with session.evaluating(number):
                    session.result = measure(state.evaluated)
            if session.save_due(number):
                session.measured(number, "router", functools.partial(probe.moved, state.weights))
                session.save(number, state)
    if session.main:
        report(session, plan, batches.bad)
    return 0


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads.

    Attributes:
      source: the training split.
      held_out: the split that is evaluated on; None where data.holdout=0 keeps nothing back.
      unigram: entropy of the target tokens without context, in nats.
      tasks: that are scored while fine-tuning; None while pre-training, and where nothing is kept
        back.
    """

    source: Source
    held_out: Source | None
    unigram: float
    tasks: Tasks | None


def open_data(plan: Plan[Architecture]) -> Data:
    """Opens the splits, and the tasks of a fine-tuning run.

    Raises:
      ConfigError: a vocabulary larger than the model's, or a figure for `checkpoint.best` that no
        evaluation gives.
      DataError: data that are not there, or are other ones on other hosts.
    """
    config = plan.config
    source = make_source(config.data, "train")
    eval_source = make_source(config.data, "holdout") if evaluates(config.data) else None
    check_vocabulary(source.vocabulary, plan.model.vocab_size)
    unigram = unigram_entropy((eval_source or source).target_counts())
    scores = config.task == "finetune" and eval_source is not None
    tasks = Tasks(plan, config.evaluation.limit) if scores else None
    if config.checkpoint.best:
        check_best(config, held_out.figure_names(eval_source, tasks, config.data.holdout))
    splits = {"train": source} | ({} if eval_source is None else {"held_out": eval_source})
    peers.agree(split_facts(**splits), DataError)
    return Data(source, eval_source, unigram, tasks)


def first_state(plan: Plan[Architecture]) -> TrainState:
    """The state before the first step: new weights, those that `init_from` names, or those of the
    dense run `upcycle.workdir`.
    """
    config, report = plan.config, ""
    dense = upcycle.read(plan) if config.upcycle.workdir else None
    key = jax.random.key(config.seed)
    state = train_state.create(plan.abstract, plan.optimizer, key, plan.shardings)
    if dense is not None:
        state, report = upcycle.start(plan, state, dense)
    elif config.init_from:
        state, report = finetune.start(plan, state)
    if report and jax.process_index() == 0:
        print(report, flush=True)
    return state


def step_values(model: Architecture, sums: Sums) -> dict[str, float]:
    """What a training step measured, by the names of `metrics.jsonl`."""
    return Measured.of(sums, model.all_sparse_blocks).flat()


def over_held_out(
    eval_step: held_out.EvalStep,
    data: Data,
    plan: Plan[Architecture],
    between: Callable[[], object],
    weights: Arrays,
) -> Evaluation:
    """Measures weights on the held-out split and on the tasks; see `held_out.over_split`."""
    assert data.held_out is not None
    return held_out.over_split(
        eval_step,
        weights,
        data.held_out,
        plan,
        unigram=data.unigram,
        tasks=data.tasks,
        between=between,
    )


def opening(plan: Plan[Architecture], data: Data, start: int) -> str:
    """The lines that a run starts with."""
    config, mesh, source = plan.config, plan.mesh, data.source
    tokens = " + ".join(map(str, lengths(plan).values()))
    count = "no" if data.held_out is None else f"{len(data.held_out):,}"
    nothing = f"held out nothing (data.holdout={config.data.holdout:g}): nothing is evaluated"
    resumed = f", going on from {start}" if start else ""
    epochs = f" ({config.epochs:g} epoch{'s' * (config.epochs != 1)})" if config.epochs else ""
    lines = [
        f"{config.name}: {plan.abstract.param_count:,} parameters, {config.model.dtype}",
        f"  data     {config.data.source}: {len(source):,} training and {count} held-out "
        f"rows of {tokens} tokens",
        *([f"  {nothing}"] if data.held_out is None else []),
        *(f"  {note}" for note in source.notes),
        *truncated(config.data, source),
        *scored(config, data),
        f"  targets  unigram entropy {data.unigram:.4f} nats: what ignoring all context can reach",
        f"  routing  {describe.routing(plan.model)}",
        f"  devices  {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {dict(mesh.shape)}",
        f"  steps    {config.steps} of {config.batch_size} rows{epochs}{resumed}",
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


def scored(config: ConfigDict, data: Data) -> list[str]:
    """Lines on the tasks that are scored: answers that cannot be reached, and, of one's own, what
    their files hold.
    """
    rows = data.tasks.unreachable() if data.tasks else []
    notes = pairs.notes(config.data) if pairs.is_pairs(config.data.source) else []
    return [f"  {name:<8} {text}" for name, text in rows] + [f"  {note}" for note in notes]


def report(
    session: Session[Evaluation], plan: Plan[Architecture], unreadable: list[tuple[str, str]]
) -> None:
    """Draws the curves and the load of the experts, prints the summary of a finished run and keeps
    it.
    """
    result, config = session.result, session.config
    loads = result.routers.loads() if result else {}
    pictures = curves(session.workdir), plots.expert_load(session.workdir, loads)
    speed = session.progress.average().examples_per_second or 0.0
    tokens = next(iter(lengths(plan).values()))  # of the encoder, where there is one
    measured = {"evaluation": f"none: data.holdout={config.data.holdout:g} holds nothing out"}
    if result is not None:
        measured = dict(result.rows(config))
    alerts = watch.alerts(session.workdir)
    session.report(
        measured | (watch.rows(alerts) if watch.watched(config, plan.model) else {}),
        throughput=f"{speed:,.1f} rows/s, {speed * tokens:,.0f} tokens/s",
        pictures={"pictures": ", ".join(str(path) for path in pictures if path) or "not drawn"},
        unreadable=unreadable,
        unit="records",
        figures=(result.everything() if result else {}) | {"alerts": alerts},
    )
