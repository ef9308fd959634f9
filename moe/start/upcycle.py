"""Sparse upcycling (arXiv 2212.05055): a dense checkpoint becomes a mixture of experts.

Each expert of a sparse block starts as a copy of the dense feed-forward layer that stood there; the
router is new, and so is the optimiser state. The gates of a token add up to 1, so the layer
computes what the dense one did as long as no choice is held back or dropped: `departures` names the
settings that do. A dense layer beside the experts (`model.extra_ffn`) starts with a zero last
matrix and adds nothing at first.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from moe.models.architecture import Architecture, is_sparse
from moe.models.transformer import Transformer
from moe.routing.config import RoutingConfig, policy_name
from moe.start.misfits import misfits
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.checkpoint.find import find
from trainlib.config import differences, flatten
from trainlib.errors import CheckpointError, ConfigError
from trainlib.model import weights
from trainlib.model.weights import Arrays
from trainlib.run.progress import summary
from trainlib.sharding.rules import resolve_specs
from trainlib.step.plan import Plan
from trainlib.step.train_state import TrainState

# What changes the meaning of dense weights and not their shapes.
_MEANING = (
    "data.vocabulary",
    "data.extra_ids",
    "model.residual_scale",
    "model.relative_attention_max_distance",
)
_NEW = ("experts.router", "experts.bias", "ffn")  # beginnings of what no dense block has


def dense_of(model: Architecture) -> Architecture:
    """The dense model that `model` can start from."""
    return dataclasses.replace(model, routing=None)


def upcycle(params: Arrays, dense: Arrays, model: Architecture) -> Arrays:
    """Fills the weights of a sparse model from those of the dense one, weight by weight.

    Args:
      params: name -> freshly initialised weight of `model`; its shardings are kept.
      dense: name -> weight of `dense_of(model)`.
      model: the sparse architecture.
    """
    return {name: _filled(name, value, dense, model) for name, value in params.items()}


def _filled(name: str, value: jax.Array, dense: Arrays, model: Architecture) -> jax.Array:
    stack, _, rest = name.partition(".")
    tree, _, weight = rest.partition(".")
    trees = model.trees(stack) if stack in model.stacks else {}
    if tree not in trees:
        return dense[name]
    if is_sparse(tree) and weight.startswith(_NEW):
        return jnp.zeros_like(value) if weight == "ffn.down" else value
    source = weight.replace("experts_norm.", "ffn_norm.").replace("experts.", "ffn.")
    original = dense[f"{stack}.dense.{source}"]
    experts = is_sparse(tree) and weight.startswith("experts.")

    def fill(original: jax.Array) -> jax.Array:
        taken = original[0][jnp.asarray(trees[tree])]
        if experts:
            taken = taken[:, None]
        return jnp.broadcast_to(taken, value.shape).astype(value.dtype)

    return jax.jit(fill, out_shardings=value.sharding)(original)


def departures(routing: RoutingConfig, *, train: bool) -> list[str]:
    """The settings for which an upcycled model does not compute at step 0 what the dense one did.

    Each as `KEY=VALUE (what would serve)`; none when every token keeps gates that add up to 1.
    """
    end = "" if train else "_eval"
    listed = []
    if routing.router != "tokens_choose":
        listed.append(f"routing.router={routing.router} (tokens_choose)")
    elif routing.num_experts > 1:
        if routing.top_k == 1:
            listed.append("routing.top_k=1, whose gate is a probability (2 or more)")
        elif not routing.normalize_gates:
            listed.append("routing.normalize_gates=False (True)")
        if (rule := policy_name(routing, train=train)) != "all":
            listed.append(f"routing.second_policy{end}={rule} (all)")
    factor = routing.capacity_factor if train else routing.capacity_factor_eval
    choices = routing.top_k if routing.capacity_per_choice else 1
    enough = routing.num_experts / choices
    if not routing.dropless and factor < enough:
        listed.append(
            f"routing.capacity_factor{end}={factor:g}, which may drop choices ({enough:g}, or "
            "dispatch=dropless)"
        )
    return listed


@dataclasses.dataclass(frozen=True)
class DenseRun:
    """What is read of the dense run that `upcycle.workdir` names.

    Attributes:
      directory: of its checkpoints.
      step: that was read.
      params: its weights, flat, on the devices of the sparse run.
      config: its configuration, flat; empty where the checkpoint does not hold it.
    """

    directory: Path
    step: int
    params: Arrays
    config: dict[str, Any]


def read(plan: Plan[Architecture]) -> DenseRun:
    """Reads the dense run, and refuses what cannot be upcycled before any weight of the sparse one
    is made.

    Raises:
      ConfigError: this model is dense.
      CheckpointError: there is no such run or step, or it holds another model: a table says where.
    """
    options = plan.config.upcycle
    if plan.model.routing is None:
        raise ConfigError(
            "upcycle.workdir is set and routing.num_experts is 0: a dense model has no experts to "
            "fill. Ask for experts, or unset upcycle.workdir."
        )
    directory, step = find(options.workdir, "upcycle.workdir")
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        number = checkpoints.pick(options.step or step)
        abstract = weights.abstract(Transformer(dense_of(plan.model)))
        shardings = resolve_specs(abstract.params, plan.rules, plan.mesh)
        wanted = {
            f"params/{name}": jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=shardings[name])
            for name, spec in abstract.params.items()
        }
        _check_fit(checkpoints, number, wanted)
        stored = checkpoints.restore_some(number, wanted)
        config = checkpoints.meta(number).get("config", {})
    params = {name.removeprefix("params/"): value for name, value in stored.items()}
    return DenseRun(directory, number, params, config)


def start(plan: Plan[Architecture], state: TrainState, dense: DenseRun) -> tuple[TrainState, str]:
    """The first state of a run that starts from a dense one.

    Args:
      plan: of the run.
      state: as `trainlib.step.train_state.create` makes it; its sparse weights are filled.
      dense: what `read` gave.

    Returns:
      The state, and a table of what was copied, what is new and what the first step computes.
    """
    assert plan.model.routing is not None, "`read` refuses a dense model"
    state = dataclasses.replace(state, params=upcycle(state.params, dense.params, plan.model))
    title = f"Upcycled from step {dense.step} in {dense.directory}"
    return state, summary(title, _rows(plan, plan.model.routing, dense.config))


def _check_fit(
    checkpoints: Checkpoints, number: int, wanted: dict[str, jax.ShapeDtypeStruct]
) -> None:
    stored = checkpoints.shapes(number)
    where = f"Step {number} in {checkpoints.directory} (upcycle.workdir)"
    if any(".sparse." in name for name in stored):
        raise CheckpointError(
            f"{where} has experts already, and upcycling fills experts from a dense model. Give a "
            "run of routing.num_experts=0, or start from this one with --config.init_from."
        )
    if misfitting := misfits(stored, wanted, ["params/"]):
        raise CheckpointError(
            f"{where} is not the dense form of this model: the weights below differ. Nothing was "
            "loaded. Set the keys of model. as in the config.json beside that checkpoint; only "
            "model.extra_ffn, model.expert_bias and model.sparse_* may be others.",
            misfitting.table(),
        )


def _rows(plan: Plan[Architecture], routing: RoutingConfig, meta: dict) -> list[tuple[str, str]]:
    blocks = sum(map(len, plan.model.all_sparse_blocks.values()))
    inside = {name.partition(".sparse.")[2] for name in plan.abstract.params}
    new = sorted(name for name in inside if name.startswith(_NEW))
    rows = [
        ("experts", f"{routing.num_experts} copies of the feed-forward layer in {blocks} blocks"),
        ("new", ", ".join(new) + ", optimiser slots"),
    ]
    for mode, train in (("training", True), ("evaluation", False)):
        listed = departures(routing, train=train)
        says = "the dense model"
        if listed:
            says = f"not the dense model at first: {'; '.join(listed)}"
        rows.append((f"in {mode}", says))
    for key, (old, now) in differences(meta, flatten(plan.config)).items():
        if key in _MEANING:
            rows.append(("warning", f"{key} was {old!r} and is {now!r}"))
    return rows
