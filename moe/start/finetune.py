"""Fine-tuning: which weights learn, and starting from the checkpoint of another run.

Protocol and figures: ST-MoE, arXiv 2202.08906, section 4 and table 20. A run starts from the
weights that `init_from` names, or from their moving averages where its step holds any; all have to
fit. With `finetune.keep_slots` the optimiser slots are loaded too; the learning rate always starts
anew. Experts are read into the type in which this run keeps them, and adapters start anew unless
they are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from moe.models.architecture import Architecture
from moe.start import stored as reading
from moe.start.misfits import Misfits, are_averaged, misfits
from moe.start.tuned import is_adapter, is_expert
from trainlib.checkpoint.checkpoints import Checkpoints, to_flat
from trainlib.checkpoint.find import find
from trainlib.errors import CheckpointError, ConfigError
from trainlib.run.progress import summary
from trainlib.step import plan as plan_lib
from trainlib.step.plan import Plan
from trainlib.step.train_state import TrainState, first_average

_TASKS = ("task", "sample", "pairs")  # kinds of data.source that can be scored
_RESTARTED = "opt_state/rate/"  # the count of updates that the learning rate follows


def start(plan: Plan[Architecture], state: TrainState) -> tuple[TrainState, str]:
    """The first state of a run that starts from the checkpoint `init_from`.

    Args:
      plan: of the run.
      state: as `trainlib.step.train_state.create` makes it.

    Returns:
      The state, and a table of what was taken.

    Raises:
      CheckpointError: there is none, or it does not fit: a table says where, and nothing is loaded.
    """
    config = plan.config
    directory, step = find(config.init_from)
    checkpoints = Checkpoints(directory)
    number = checkpoints.pick(config.init_from_step or step)
    stored = checkpoints.shapes(number)
    wanted = to_flat(plan.abstract_state())
    where = f"Step {number} in {directory}"
    _check_adapters(config.finetune.lora, checkpoints.meta(number), stored, where)
    new = {name for name in wanted if is_adapter(name) and name not in stored}
    weights = {name: leaf for name, leaf in wanted.items() if name not in new}
    _refuse(misfits(stored, weights, ["params/"]), where, "weights")
    _check_biases(stored, wanted, where)
    # A balance bias that the other run had not starts at 0, as there.
    held = {n: w for n, w in weights.items() if n.startswith(("params/", "model_state/"))}
    averaged = are_averaged(stored)
    read = reading.read(checkpoints, number, stored, held, averaged=averaged)
    # Counts of updates are for all weights at once: new adapters would not be at their beginning.
    keeps = config.finetune.keep_slots and not new
    slots = _slots(stored, wanted, where) if keeps else []
    read |= checkpoints.restore_some(number, {name: wanted[name] for name in slots})
    checkpoints.close()
    flat = to_flat(state) | read
    leaves = [flat[name] for name in to_flat(state)]
    started = jax.tree.unflatten(jax.tree.structure(state), leaves)
    ema = first_average(started.weights, plan.shardings)
    started = dataclasses.replace(started, ema=ema)
    kind = ", moving averages" if averaged else ""
    rows = [
        ("weights", f"{len(plan.abstract.params)}, {plan.abstract.param_count:,} numbers{kind}"),
        ("slots", f"{len(slots)} kept" if slots else "new"),
        ("learning", learning(plan)),
        *_kept(plan),
    ]
    return started, summary(f"Starting from step {number} in {directory}", rows)


def check_learns(plan: Plan[Architecture]) -> None:
    """Of a run that starts from new weights; see `trainlib.step.plan.check_learns`."""
    tune = plan.config.finetune
    freezing = {
        "finetune.lora.rank": (tune.lora.rank, 0),
        "finetune.train": (tune.train, "all"),
        "finetune.frozen_dtype": (tune.frozen_dtype, "float32"),
        "optimizer.frozen": (list(plan.config.optimizer.frozen), []),
    }
    plan_lib.check_learns(plan, freezing)


def _kept(plan: Plan[Architecture]) -> list[tuple[str, str]]:
    """A row of the starting table that says how frozen experts are kept, where not as ever."""
    kind = plan.config.finetune.frozen_dtype
    if kind == "float32":
        return []
    specs = plan.abstract.params
    count = sum(spec.size for name, spec in specs.items() if is_expert(name))
    return [("experts", f"{count:,} numbers as {kind}")]


def _check_adapters(
    ours: Mapping[str, Any], meta: Mapping[str, Any], stored: Mapping[str, Any], where: str
) -> None:
    """Refuses adapters of the other run that would compute something else here, or nothing."""
    if not any(is_adapter(name) for name in stored if name.startswith("params/")):
        return
    theirs = meta.get("config", {}).get("finetune", {}).get("lora", {})
    if not ours["rank"]:
        raise CheckpointError(
            f"{where} (init_from) holds adapters, without which its weights are those before that "
            "run. Merge them first: export that run with --names=own, import the export, and start "
            "from the import. Or go on with the adapters, by the keys finetune.lora of that run."
        )
    if any(theirs.get(name) != ours[name] for name in ("rank", "alpha")):
        raise CheckpointError(
            f"{where} (init_from) holds adapters of rank {theirs.get('rank')} and alpha "
            f"{theirs.get('alpha')}, and this run has rank {ours['rank']} and alpha "
            f"{ours['alpha']}. Use the same, or merge them first: export that run with "
            "--names=own, import the export, and start from the import."
        )


def _check_biases(stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Refuses to leave out a balance bias: the router would choose other experts."""
    scales = reading.scales_of(stored).values()
    lost = [
        n for n in stored if n.startswith("model_state/") and n not in wanted and n not in scales
    ]
    if lost:
        raise CheckpointError(
            f"{where} (init_from) was trained with a balance bias, without which its routers "
            "choose other experts. Set --config.routing.balance_bias=true; with "
            "--config.routing.bias_update_rate=0 it stays as it is.",
            "\n".join(f"  {name}" for name in lost),
        )


def _slots(stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> list[str]:
    """Names of the optimiser slots to load: those of the weights that learn here."""
    slots = {
        name: leaf
        for name, leaf in wanted.items()
        if name.startswith("opt_state/") and not name.startswith(_RESTARTED)
    }
    misfitting = dataclasses.replace(misfits(stored, slots, ["opt_state/"]), unexpected=[])
    _refuse(misfitting, where, "optimiser slots")
    return list(slots)


def _refuse(misfitting: Misfits, where: str, what: str) -> None:
    if not misfitting:
        return
    advice = (
        "Set the keys of model. and routing. as in the config.json beside that checkpoint."
        if what == "weights"
        else "Use the optimizer of that run, or start anew with --config.finetune.keep_slots=false."
    )
    raise CheckpointError(
        f"{where} (init_from) does not fit this run: the {what} below differ. Nothing was loaded. "
        f"{advice}",
        misfitting.table(),
    )


def learning(plan: Plan[Architecture]) -> str:
    """Says which weights learn."""
    specs, lora = plan.abstract.params, plan.config.finetune.lora
    kind = f"adapters of rank {lora.rank}" if lora.rank else plan.config.finetune.train
    count = sum(specs[name].size for name in plan.trained)
    total = plan.abstract.param_count
    return f"{kind}: {len(plan.trained)} of {len(specs)} weights, {count:,} of {total:,} numbers"


def check(plan: Plan[Architecture]) -> None:
    """Refuses a combination of keys that cannot work, before anything is compiled.

    Raises:
      ConfigError: names the keys.
    """
    config = plan.config
    if config.init_from and config.upcycle.workdir:
        raise ConfigError(
            "init_from and upcycle.workdir both say where the weights come from. Unset one of them."
        )
    if config.upcycle.workdir and plan.model.tuned:
        raise ConfigError(
            "upcycle.workdir makes experts that are to learn, and finetune.frozen_dtype and "
            "finetune.lora are for weights that do not. Upcycle first, and start from that run by "
            "init_from."
        )
    if config.task == "finetune" and config.data.source.partition(":")[0] not in _TASKS:
        raise ConfigError(
            f"task='finetune' scores tasks, and data.source={config.data.source!r} names none. Use "
            "--config.data.source=task:superglue with --config.data.dir=DIR, sample:superglue, or "
            "pairs:* with --config.data.train=FILE of your own."
        )
