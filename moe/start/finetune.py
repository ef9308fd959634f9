"""Fine-tuning: which weights learn, and starting from the checkpoint of another run.

Protocol and figures: ST-MoE, arXiv 2202.08906, section 4 and table 20. A run starts from the
weights that `init_from` names, all of which have to fit. Optimiser slots come along where
`finetune.keep_slots` says so; the learning rate always begins anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from moe.models.architecture import Architecture
from trainlib.checkpoint.checkpoints import Checkpoints, to_flat
from trainlib.checkpoint.find import find
from trainlib.errors import CheckpointError, ConfigError
from trainlib.run.progress import summary
from trainlib.step.plan import Plan
from trainlib.step.train_state import TrainState

_SHOWN = 12  # weights of one kind that the table of misfits lists
_RESTARTED = "opt_state/rate/"  # the count of updates that the learning rate follows


@dataclasses.dataclass(frozen=True)
class Misfits:
    """What keeps a checkpoint from being taken: names, with shapes."""

    missing: list[str]
    unexpected: list[str]
    shapes: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def table(self) -> str:
        """As lines to print."""
        kinds = {
            "missing": "in this model and not in the checkpoint",
            "unexpected": "in the checkpoint and not in this model",
            "shapes": "of another shape",
        }
        lines = []
        for kind, meaning in kinds.items():
            names = getattr(self, kind)
            if names:
                lines.append(f"  {len(names)} {meaning}:")
                lines += [f"    {name}" for name in names[:_SHOWN]]
                lines += [f"    and {len(names) - _SHOWN} more"] * (len(names) > _SHOWN)
        return "\n".join(lines)


def misfits(stored: Mapping[str, Any], wanted: Mapping[str, Any], kinds: Iterable[str]) -> Misfits:
    """Compares leaves by name and shape.

    Args:
      stored: `params/NAME`, `opt_state/..` -> anything with a shape, in the checkpoint.
      wanted: the same of this run.
      kinds: beginnings of the names that count.
    """
    kinds = tuple(kinds)
    theirs = {name: tuple(leaf.shape) for name, leaf in stored.items() if name.startswith(kinds)}
    ours = {name: tuple(leaf.shape) for name, leaf in wanted.items() if name.startswith(kinds)}
    both = [name for name in ours if name in theirs]
    return Misfits(
        [f"{name} {ours[name]}" for name in ours if name not in theirs],
        [f"{name} {theirs[name]}" for name in theirs if name not in ours],
        [f"{n} {theirs[n]} there, {ours[n]} here" for n in both if theirs[n] != ours[n]],
    )


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
    _refuse(misfits(stored, wanted, ["params/"]), f"Step {number} in {directory}", "weights")
    names = [name for name in wanted if name.startswith("params/")]
    if config.finetune.keep_slots:
        names += _slots(stored, wanted, f"Step {number} in {directory}")
    read = checkpoints.restore_some(number, {name: wanted[name] for name in names})
    checkpoints.close()
    flat = to_flat(state) | read
    leaves = [flat[name] for name in to_flat(state)]
    begun = jax.tree.unflatten(jax.tree.structure(state), leaves)
    slots = len(names) - len(plan.abstract.params)
    rows = [
        ("weights", f"{len(plan.abstract.params)}, {plan.abstract.param_count:,} numbers"),
        ("slots", f"{slots} kept" if slots else "new"),
        ("learning", learning(plan)),
    ]
    return begun, summary(f"Starting from step {number} in {directory}", rows)


def _slots(stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> list[str]:
    """The optimiser slots to take along; those of weights that do not learn here stay behind."""
    kept = {
        name: leaf
        for name, leaf in wanted.items()
        if name.startswith("opt_state/") and not name.startswith(_RESTARTED)
    }
    found = misfits(stored, kept, ["opt_state/"])
    found = dataclasses.replace(found, unexpected=[])
    _refuse(found, where, "optimiser slots")
    return list(kept)


def _refuse(found: Misfits, where: str, what: str) -> None:
    if not found:
        return
    advice = (
        "Set the keys of model. and routing. as in the config.json beside that checkpoint."
        if what == "weights"
        else "Use the optimizer of that run, or start anew with --config.finetune.keep_slots=false."
    )
    raise CheckpointError(
        f"{where} (init_from) does not fit this run: the {what} below differ. Nothing was loaded. "
        f"{advice}",
        found.table(),
    )


def learning(plan: Plan[Architecture]) -> str:
    """Says which weights learn."""
    specs = plan.abstract.params
    count = sum(specs[name].size for name in plan.trained)
    total = plan.abstract.param_count
    return (
        f"{plan.config.finetune.train}: {len(plan.trained)} of {len(specs)} weights, "
        f"{count:,} of {total:,} numbers"
    )


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
    if config.task == "finetune" and config.data.source.partition(":")[0] not in ("task", "sample"):
        raise ConfigError(
            f"task='finetune' scores tasks, and data.source={config.data.source!r} names none. Use "
            "--config.data.source=task:superglue with --config.data.dir=DIR, or sample:superglue."
        )
