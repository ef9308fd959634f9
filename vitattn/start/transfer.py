"""Starts a run from the weights of another one: `init_from`, `init_from_step`, `init_new`.

L offsets of a relative-position table, D depth of a head.

A weight or statistic is taken where name and shape are equal, from the moving averages where the
other run kept them. A head of another number of classes starts anew; one of as many must be of the
same classes, by their names, and its outputs are put in the order of those here. A table of
relative positions of another map size is interpolated along its offsets, ends on ends: a larger map
shows the same picture in more pixels. Whatever else differs is an error, unless `init_new` matches
its name.
Optimiser slots and the step counter start anew. See `optimizer.frozen` for parts that shall not
learn; their running statistics go on following the batches, as the continued average that the
checkpoint counted, or slowly, by `model.bn_decay`, where it did not count (imported weights).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from trainlib import patterns
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.checkpoint.find import find
from trainlib.errors import CheckpointError, shown
from trainlib.model import statistics
from trainlib.model import weights as nn
from trainlib.run.progress import summary
from trainlib.step import optimizers
from trainlib.step.train_state import TrainState
from vitattn.labels import class_names, matching

NEW, STRETCHED = {"classes"}, {"offset"}  # axes that may differ, and what is done then
SLOW = 0.2  # what may be left of the statistics taken at the end of a run without a word
SHOWN = 4  # names of one kind that are printed


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of each weight and statistic.

    Attributes:
      taken: name -> name in the checkpoint; same shape.
      stretched: name -> (name in the checkpoint, its shape), for relative-position tables.
      new: name -> why it starts anew.
      left: names in the checkpoint that nothing here takes.
    """

    taken: dict[str, str]
    stretched: dict[str, tuple[str, tuple[int, ...]]]
    new: dict[str, str]
    left: list[str]


def _differing(spec: nn.Spec, shape: tuple[int, ...]) -> set[str]:
    """Logical axes in whose length a shape differs; all of them when it has another number."""
    if len(shape) != len(spec.shape):
        return set(spec.axes)
    pairs = zip(spec.axes, shape, spec.shape, strict=True)
    return {axis for axis, old, new in pairs if old != new}


def match(
    stored: Mapping[str, tuple[int, ...]], specs: Mapping[str, nn.Spec], init_new: Sequence[str]
) -> Plan:
    """Decides what is taken.

    Args:
      stored: name in the checkpoint (`params/...`, `model_state/...`, `ema/...`) -> shape.
      specs: weights and statistics of the model that starts.
      init_new: regular expressions of names that start anew whatever the checkpoint holds.

    Raises:
      CheckpointError: a weight is missing there or has another shape; names those.
      ConfigError: a pattern that matches nothing.
    """
    averaged = any(name.startswith("ema/") for name in stored)
    kinds = ("ema/",) if averaged else ("params/", "model_state/")
    there = {n.partition("/")[2]: n for n in stored if n.startswith(kinds)}
    budget = [patterns.BUDGET]
    anew = set().union(*(optimizers.matching("init_new", p, list(specs), budget) for p in init_new))
    plan, wrong = Plan({}, {}, {}, [n for n in there if n not in specs]), []
    for name, spec in specs.items():
        source = there.get(name, "")
        shape = tuple(stored.get(source, ()))
        if name in anew:
            plan.new[name] = "init_new"
        elif not source:
            wrong.append(f"{name} {spec.shape} is missing there")
        elif shape == spec.shape:
            plan.taken[name] = source
        elif (differing := _differing(spec, shape)) <= NEW:
            plan.new[name] = f"{shape} there"
        elif differing <= STRETCHED:
            plan.stretched[name] = (source, shape)
        else:
            wrong.append(f"{name} is {shape} there and {spec.shape} here")
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise CheckpointError(
            f"The checkpoint of init_from does not fit this model: {'; '.join(wrong[:SHOWN])}"
            f"{more}. Only a head of other classes and relative positions of another map size may "
            "differ. Set the model keys as in the config.json beside the checkpoint, or let parts "
            "start anew by --config.init_new=REGEX,... on their names."
        )
    return plan


def stretch(table: jax.Array, length: int) -> jax.Array:
    """Relative-position table f32 [L, D] -> [length, D]: linear, ends on ends."""
    return jnp.asarray(_interpolation(table.shape[0], length), table.dtype) @ table


def _interpolation(old: int, new: int) -> np.ndarray:
    """Matrix [new, old] whose rows weigh the two nearest old rows."""
    at = np.linspace(0, old - 1, new)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))


def start(
    state: TrainState,
    config: ConfigDict,
    abstract: nn.Abstract,
    shardings: TrainState,
    names: class_names.Names = (),
) -> tuple[TrainState, str]:
    """Puts the weights that `config.init_from` names into a new state.

    Args:
      state: as `trainlib.step.train_state.create` makes it.
      config: reads init_from, init_from_step and init_new.
      abstract: the model.
      shardings: of the state.
      names: of the outputs; empty where they are not known.

    Returns:
      The state and a table of what was taken, what is new and what was left over.

    Raises:
      CheckpointError: nothing there, or another model.
      ConfigError: a pattern of init_new that matches nothing, or a head of as many other classes.
      DataError: the names of its classes cannot be read.
    """
    directory, step = find(config.init_from)
    checkpoints = checkpoint.Checkpoints(directory)
    number = checkpoints.pick(config.init_from_step or step)
    specs = {**abstract.params, **abstract.model_state}
    places: dict[str, NamedSharding] = {**shardings.params, **shardings.model_state}
    stored = {
        n: tuple(s.shape) for n, s in checkpoints.shapes(number).items() if hasattr(s, "shape")
    }
    plan = match(stored, specs, config.init_new)
    heads = [name for name in plan.taken if "classes" in specs[name].axes]
    meta, where = checkpoints.meta(number), str(directory / str(number))
    kept = class_names.find(directory.parent, where, meta, len(names)) if heads and names else None
    anew = f"--config.init_new='^{heads[0].split('.')[0]}[.]'" if heads else ""
    order = matching.head_order(kept, names, anew) if kept else None

    wanted = {
        source: jax.ShapeDtypeStruct(specs[name].shape, specs[name].dtype, sharding=places[name])
        for name, source in plan.taken.items()
    }
    for name, (source, shape) in plan.stretched.items():
        whole = NamedSharding(places[name].mesh, P())
        wanted[source] = jax.ShapeDtypeStruct(shape, specs[name].dtype, sharding=whole)
    read = checkpoints.restore_some(number, wanted)
    counts = _counts(checkpoints, number, plan, state, shardings)
    checkpoints.close()

    arrays = {name: read[source] for name, source in plan.taken.items()}
    for name, (source, _) in plan.stretched.items():
        fit = jax.jit(stretch, static_argnums=1, out_shardings=places[name])
        arrays[name] = fit(read[source], specs[name].shape[0])
    for name in heads if order is not None else ():
        axis = specs[name].axes.index("classes")
        sort = jax.jit(functools.partial(jnp.take, axis=axis), out_shardings=places[name])
        arrays[name] = sort(arrays[name], order)
    params = {name: arrays.get(name, value) for name, value in state.params.items()}
    running = {name: arrays.get(name, value) for name, value in state.model_state.items()}
    ema = state.ema
    if ema:
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.ema)
        ema = copy({**params, **running})
    begun = dataclasses.replace(state, params=params, model_state=running, ema=ema)
    if len(counts):
        placed = jax.device_put(counts, shardings.counts)
        begun = dataclasses.replace(begun, counts=placed)
    classes = "by name, in another order there" if order is not None else "the same"
    if heads and kept is None:
        classes = "by number, since their names are not known: see that they are the same classes"
    title = f"Starting from step {number} in {shown(directory)}"
    lines = report(plan, specs, title, classes if heads else "new")
    return begun, lines + _slow_statistics(config, counts)


def _slow_statistics(config: Any, counts: np.ndarray) -> str:
    """A line when the run is too short for its statistics to become those of its own batches."""
    model, steps, different = config.model, config.steps, set(counts.tolist())
    decay = model.bn_decay
    left = max((statistics.left_after(steps, n, decay) for n in different), default=0)
    if left < SLOW:
        return ""
    return (
        f"\n  note     after {steps} steps the running statistics are still "
        f"{100 * left:.1f} % those taken (model.bn_decay={decay}); a lower model.bn_decay lets "
        "evaluation see the new images"
    )


def _counts(
    checkpoints: checkpoint.Checkpoints,
    number: int,
    plan: Plan,
    state: TrainState,
    shardings: TrainState,
) -> np.ndarray:
    """Counts of updates, layer by layer: those of the checkpoint for what is taken from it."""
    shapes, layers = checkpoints.shapes(number), statistics.layers(state.model_state)
    stored = (n.partition("/")[2] for n in shapes if n.startswith("model_state/"))
    there = statistics.layers(stored)
    counted = dict.fromkeys(there, statistics.UNCOUNTED)
    if checkpoint.COUNTS in shapes:
        kept = shapes[checkpoint.COUNTS]
        wanted = jax.ShapeDtypeStruct(kept.shape, kept.dtype, sharding=shardings.step)
        read = checkpoints.restore_some(number, {checkpoint.COUNTS: wanted})[checkpoint.COUNTS]
        counted = dict(zip(there, np.asarray(read).tolist(), strict=True))
    taken = statistics.layers(plan.taken)
    ours = [
        counted.get(n, statistics.UNCOUNTED) if n in taken else statistics.FRESH for n in layers
    ]
    return np.array(ours, np.int32)


def report(plan: Plan, specs: Mapping[str, nn.Spec], title: str, classes: str) -> str:
    """The table of a plan and what becomes of the classes, as text."""
    size = sum(specs[name].size for name in plan.taken)
    averaged = any(source.startswith("ema/") for source in plan.taken.values())
    kind = "moving averages" if averaged else "weights and statistics"
    stretched = {name: f"{shape} there" for name, (_, shape) in plan.stretched.items()}
    rows: list[tuple[str, Any]] = [("taken", f"{len(plan.taken)} {kind}, {size:,} numbers")]
    for label, names in (("interpolated", stretched), ("new", plan.new)):
        lines = [f"{name} {specs[name].shape} ({why})" for name, why in names.items()]
        rows.append((label, _few(lines)))
    rows += [("classes", classes), ("left over", _few(plan.left))]
    return summary(title, rows)


def _few(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)}: {', '.join(names[:SHOWN])}{more}"
