"""Starts a run from the weights of another one: `init_from`, `init_from_step`, `init_new`.

L offsets of a relative-position table, D depth of a head.

A weight or statistic is taken if its name and shape are equal, from the moving averages if the
other run has them. A head with another number of classes starts anew. One with as many classes must
be of the same classes, by their names; its outputs are put in the order of those here. A table of
relative positions for another map size is interpolated along its offsets, ends on ends: a larger
map shows the same picture in more pixels. Any other difference is an error, unless `init_new`
matches the name.

A detector takes its backbone from a classifier as well (`passage`); pyramid and heads then start
anew. Predictors for other anchors than those of the other detector start anew too.

Optimiser slots and the step counter start anew. `optimizer.frozen` names parts that do not learn.
Their running statistics still follow the batches: as the continued average whose updates the
checkpoint counted, or slowly, by `model.bn_decay`, if it did not count them (imported weights).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib import patterns
from trainlib.checkpoint.checkpoints import COUNTS
from trainlib.errors import CheckpointError, shown
from trainlib.model import statistics
from trainlib.model.weights import Arrays, Spec
from trainlib.run.progress import summary
from trainlib.step import optimizers
from trainlib.step.plan import Plan
from trainlib.step.train_state import TrainState, first_average
from vitattn.labels import class_names, matching
from vitattn.labels.class_names import Names
from vitattn.models import ModelConfig
from vitattn.start import passage
from vitattn.start.origin import Origin, open_origin
from vitattn.start.passage import Passage

# Logical axes whose length may differ: of weights that then start anew, and that are stretched.
NEW, STRETCHED = {"classes", "anchors"}, {"offset"}
# The part of the taken statistics that may be left at the end of a run before a note is printed.
SLOW = 0.2
SHOWN = 4  # names of one kind that are printed


@dataclasses.dataclass(frozen=True)
class Match:
    """Where each weight and statistic comes from.

    Attributes:
      taken: name -> name in the checkpoint, of the same shape.
      stretched: name -> (name in the checkpoint, its shape), for relative-position tables.
      new: name -> why it starts anew.
      left: names in the checkpoint that are not used.
    """

    taken: dict[str, str]
    stretched: dict[str, tuple[str, tuple[int, ...]]]
    new: dict[str, str]
    left: list[str]


def _differing(spec: Spec, shape: tuple[int, ...]) -> set[str | None]:
    """Logical axes in whose length a shape differs; all of them if their number differs."""
    if len(shape) != len(spec.shape):
        return set(spec.axes)
    pairs = zip(spec.axes, shape, spec.shape, strict=True)
    return {axis for axis, old, new in pairs if old != new}


def match(
    stored: Mapping[str, tuple[int, ...]],
    specs: Mapping[str, Spec],
    init_new: Sequence[str],
    way: Passage = passage.SAME,
) -> Match:
    """Decides where each weight and statistic comes from.

    Args:
      stored: name in the checkpoint (`params/...`, `model_state/...`, `ema/...`) -> shape.
      specs: weights and statistics of the model that starts.
      init_new: regular expressions of names that start anew, whatever the checkpoint holds.
      way: from the kind of model there to the kind here.

    Raises:
      CheckpointError: a weight is missing there or has another shape; names those.
      ConfigError: a pattern that matches nothing.
    """
    there = passage.by_name(stored)
    budget = [patterns.BUDGET]
    anew = set().union(*(optimizers.matching("init_new", p, list(specs), budget) for p in init_new))
    used = {way.theirs(name) for name in specs}
    result, wrong = Match({}, {}, {}, [n for n in there if n not in used]), []
    for name, spec in specs.items():
        source = there.get(way.theirs(name), "")
        shape = tuple(stored.get(source, ()))
        if name in anew:
            result.new[name] = "init_new"
        elif reason := way.new(name, spec):
            result.new[name] = reason
        elif not source:
            wrong.append(f"{name} {spec.shape} is missing there")
        elif shape == spec.shape:
            result.taken[name] = source
        elif (differing := _differing(spec, shape)) <= NEW:
            result.new[name] = f"{shape} there"
        elif differing <= STRETCHED:
            result.stretched[name] = (source, shape)
        else:
            wrong.append(f"{name} is {shape} there and {spec.shape} here")
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise CheckpointError(
            f"The checkpoint{way.source} of init_from does not fit this model: "
            f"{'; '.join(wrong[:SHOWN])}{more}. Only a head of other classes, predictors of other "
            "anchors and relative positions of another map size may differ. Set the model keys as "
            "in the config.json beside the checkpoint, or let parts start anew by "
            "--config.init_new=REGEX,... on their names."
        )
    return result


def stretch(table: jax.Array, length: int) -> jax.Array:
    """Interpolates a relative-position table f32 [L, D] -> [length, D]: linear, ends on ends."""
    return jnp.asarray(_interpolation(table.shape[0], length), table.dtype) @ table


def _interpolation(old: int, new: int) -> np.ndarray:
    """Matrix [new, old] that weighs the two nearest old offsets for each new one."""
    at = np.linspace(0, old - 1, new)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))


def start(plan: Plan[ModelConfig], state: TrainState, names: Names = ()) -> tuple[TrainState, str]:
    """Returns the first state of a run that starts from the weights that `init_from` names.

    Args:
      plan: of the run.
      state: as `trainlib.step.train_state.create` makes it.
      names: of the classes that the outputs stand for; empty if they are not known.

    Returns:
      The state, and a table of what was taken, what is new and what was left over.

    Raises:
      CheckpointError: there is no checkpoint, or it is of another model.
      ConfigError: a pattern of init_new that matches nothing, or a head of as many other classes.
      DataError: the names of its classes cannot be read.
    """
    config = plan.config
    specs = {**plan.abstract.params, **plan.abstract.model_state}
    with contextlib.closing(open_origin(config.init_from, config.init_from_step or None)) as origin:
        stored = {name: tuple(x.shape) for name, x in origin.shapes.items() if hasattr(x, "shape")}
        way = passage.between(stored, specs, origin.meta.get("config", {}), plan.model)
        result = match(stored, specs, config.init_new, way)
        heads = [name for name in result.taken if "classes" in specs[name].axes]
        order, classes = _head_order(origin, heads[0], names) if heads else (None, "new")
        arrays = _read(origin, result, plan)
        counts = _counts(origin, result, plan, state, way)
    if order is not None:
        for name in heads:
            arrange = jax.jit(
                functools.partial(jnp.take, axis=specs[name].axes.index("classes")),
                out_shardings=plan.weight_shardings[name],
            )
            arrays[name] = arrange(arrays[name], order)
    title = f"Starting from step {origin.step}{way.source} in {shown(origin.home)}"
    table = report(result, specs, title, classes) + _slow_statistics(plan, counts)
    table += _other_epsilon(plan, origin.meta.get("config", {}))
    return _filled(plan, state, arrays, counts), table


def _head_order(origin: Origin, head: str, names: Names) -> tuple[np.ndarray | None, str]:
    """Which output of the checkpoint each output here continues, int [classes] (None: the same
    one), and a phrase about it. `head` is the name of a weight of the head."""
    theirs = class_names.find(origin.home, origin.place, origin.meta, len(names)) if names else None
    if theirs is None:
        return None, (
            "by number, since their names are not known: see that they are the same classes"
        )
    part = head.rpartition(".")[0].replace(".", "[.]")
    anew = f"--config.init_new='^{part}[.]'"
    order = matching.head_order(theirs, names, anew)
    return order, "the same" if order is None else "by name, in another order there"


def _read(origin: Origin, result: Match, plan: Plan[ModelConfig]) -> dict[str, jax.Array]:
    """Reads what is taken and what is stretched: name -> array in its shape here."""
    specs = {**plan.abstract.params, **plan.abstract.model_state}
    shardings = plan.weight_shardings
    wanted = {
        source: jax.ShapeDtypeStruct(specs[name].shape, specs[name].dtype, sharding=shardings[name])
        for name, source in result.taken.items()
    }
    for name, (source, shape) in result.stretched.items():
        whole = NamedSharding(plan.mesh, P())
        wanted[source] = jax.ShapeDtypeStruct(shape, specs[name].dtype, sharding=whole)
    stored = origin.read(wanted)
    arrays = {name: stored[source] for name, source in result.taken.items()}
    for name, (source, _) in result.stretched.items():
        fit = jax.jit(stretch, static_argnums=1, out_shardings=shardings[name])
        arrays[name] = fit(stored[source], specs[name].shape[0])
    return arrays


def _filled(
    plan: Plan[ModelConfig], state: TrainState, arrays: Arrays, counts: np.ndarray
) -> TrainState:
    """The state with `arrays` in the place of its own, and moving averages that start from them."""
    params = state.params | {name: arrays[name] for name in state.params if name in arrays}
    known = [name for name in state.model_state if name in arrays]
    running = state.model_state | {name: arrays[name] for name in known}
    ema = first_average({**params, **running}, plan.shardings)
    filled = dataclasses.replace(state, params=params, model_state=running, ema=ema)
    if len(counts):
        counted = jax.device_put(counts, plan.shardings.counts)
        filled = dataclasses.replace(filled, counts=counted)
    return filled


def _slow_statistics(plan: Plan[ModelConfig], counts: np.ndarray) -> str:
    """A note if the run is too short for its statistics to become those of its own batches."""
    decay, steps, statistic = plan.model.bn_decay, plan.config.steps, plan.abstract.model_state
    layers = statistics.layers(statistic)
    # Those of frozen layers, whose scale is one of them, are not meant to.
    moving = [f"{layer}.scale" not in statistic for layer in layers]
    different = set(counts[moving].tolist()) if layers else set()
    left = max((statistics.left_after(steps, n, decay) for n in different), default=0)
    if left < SLOW:
        return ""
    return (
        f"\n  note     after {steps} steps the running statistics are still "
        f"{100 * left:.1f} % those taken (model.bn_decay={decay}); a lower model.bn_decay lets "
        "evaluation see the new images"
    )


def _other_epsilon(plan: Plan[ModelConfig], saved: Mapping[str, Any]) -> str:
    """A note if frozen norms divide by something else than they did."""
    here, there = plan.model.bn_eps, saved.get("model.bn_eps")
    if getattr(plan.model, "norm", "batch") != "frozen" or there is None or there == here:
        return ""
    return (
        f"\n  note     frozen norms add model.bn_eps={here} to their variances here and {there} "
        f"there; --config.model.bn_eps={there} keeps them as they were"
    )


def _counts(
    origin: Origin,
    result: Match,
    plan: Plan[ModelConfig],
    state: TrainState,
    way: Passage,
) -> np.ndarray:
    """Counts of updates of the running statistics, int32 [layers]: those of the checkpoint for what
    is taken from it."""
    shapes, layers = origin.shapes, statistics.layers(state.model_state)
    stored = (n.partition("/")[2] for n in shapes if n.startswith("model_state/"))
    stored_layers = statistics.layers(stored)
    counted = dict.fromkeys(stored_layers, statistics.UNCOUNTED)
    if COUNTS in shapes:
        saved = shapes[COUNTS]
        wanted = jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=plan.shardings.step)
        counts = origin.read({COUNTS: wanted})[COUNTS]
        counted = dict(zip(stored_layers, np.asarray(counts).tolist(), strict=True))
    taken = statistics.layers(result.taken)
    ours = [
        counted.get(way.theirs(n), statistics.UNCOUNTED) if n in taken else statistics.FRESH
        for n in layers
    ]
    return np.array(ours, np.int32)


def report(result: Match, specs: Mapping[str, Spec], title: str, classes: str) -> str:
    """Returns a table of where weights come from, and a line about the classes."""
    size = sum(specs[name].size for name in result.taken)
    averaged = any(source.startswith("ema/") for source in result.taken.values())
    kind = "moving averages" if averaged else "weights and statistics"
    stretched = {name: f"{shape} there" for name, (_, shape) in result.stretched.items()}
    rows: list[tuple[str, Any]] = [("taken", f"{len(result.taken)} {kind}, {size:,} numbers")]
    for label, reasons in (("interpolated", stretched), ("new", result.new)):
        rows.append((label, _few(_explained(reasons, specs), len(reasons))))
    rows += [("classes", classes), ("left over", _few(result.left, len(result.left)))]
    return summary(title, rows)


def _explained(reasons: Mapping[str, str], specs: Mapping[str, Spec]) -> list[str]:
    """A phrase for each weight that is not taken as it is; one for many of the same reason."""
    alike: dict[str, list[str]] = {}
    for name, why in reasons.items():
        alike.setdefault(why, []).append(name)
    phrases = []
    for why, names in alike.items():
        if len(names) > SHOWN:
            parts = dict.fromkeys(name.split(".")[0] for name in names)
            phrases.append(f"{len(names)} in {', '.join(parts)} ({why})")
        else:
            phrases += [f"{name} {specs[name].shape} ({why})" for name in names]
    return phrases


def _few(phrases: Sequence[str], count: int) -> str:
    if not phrases:
        return "none"
    if phrases[0].startswith(f"{count} in "):  # it is about all
        return phrases[0]
    more = f" and {len(phrases) - SHOWN} more" if len(phrases) > SHOWN else ""
    return f"{count}: {', '.join(phrases[:SHOWN])}{more}"
