"""Sparse upcycling (arXiv 2212.05055): a dense checkpoint becomes a mixture of experts.

Each expert of a sparse block starts as a copy of the dense feed-forward layer that stood there; the
router is new, and so is the optimiser state. The gates of a token add up to 1, so the layer
computes what the dense one did as long as no choice is held back or dropped: `departures` names the
settings that do. What is computed beside the routed experts, a dense layer (`model.extra_ffn`) or
shared experts, starts with a zero last matrix and adds nothing at first; so do extra dense layers
elsewhere (`model.extra_ffn_blocks`), which the dense model has not.

Experts that are m times as narrow as the dense layer (`model.expert_d_ff`) are its m pieces, again
and again: m neighbours make one copy of it. Their columns of the router start equal, so that a
token goes to all m pieces or to none, each with 1/m of the gate of their copy; the last matrices
start m times as large (virtual groups, arXiv 2410.07524).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from moe.models.architecture import Architecture, is_sparse
from moe.models.transformer import Transformer
from moe.routing.config import RoutingConfig, policy_name
from moe.start.misfits import are_averaged, misfits
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.checkpoint.find import find
from trainlib.config import differences, flatten
from trainlib.errors import CheckpointError, ConfigError
from trainlib.model import weights
from trainlib.model.weights import Arrays
from trainlib.run.progress import summary
from trainlib.sharding.rules import resolve_specs
from trainlib.step.plan import Plan
from trainlib.step.train_state import TrainState, first_average

# What changes the meaning of dense weights and not their shapes.
_MEANING = (
    "data.vocabulary",
    "data.extra_ids",
    "model.residual_scale",
    "model.relative_attention_max_distance",
)
# Beginnings of what no block of the dense model has.
_EXTRA = "extra_ffn"
_NEW = (
    *("experts.router", "experts.expert_embedding", "experts.bias", "experts.shared"),
    "experts.balance_bias",
    "ffn",
)
_SILENT = ("ffn.down", "extra_ffn.down", "experts.shared.down")  # start at zero


def dense_of(model: Architecture) -> Architecture:
    """The dense model that `model` can start from."""
    return dataclasses.replace(
        model, routing=None, extra_ffn_blocks=(), decoder_extra_ffn_blocks=()
    )


def upcycle(params: Arrays, dense: Arrays, model: Architecture) -> Arrays:
    """Fills the weights of a sparse model from those of the dense one, weight by weight.

    Args:
      params: name -> freshly initialised weight of `model`; its shardings are kept.
      dense: name -> weight of `dense_of(model)`.
      model: the sparse architecture.
    """
    return {name: _filled(name, value, dense, model) for name, value in params.items()}


def _is_new(tree: str, weight: str) -> bool:
    return weight.startswith(_NEW if is_sparse(tree) else _EXTRA)


def _filled(name: str, value: jax.Array, dense: Arrays, model: Architecture) -> jax.Array:
    stack, _, rest = name.partition(".")
    tree, _, weight = rest.partition(".")
    trees = model.trees(stack) if stack in model.stacks else {}
    if tree not in trees:
        return dense[name]
    pieces = pieces_of(model)
    if _is_new(tree, weight):
        if weight == "experts.router" and pieces > 1:
            return _jitted(lambda x: jnp.repeat(x[..., ::pieces], pieces, axis=-1), value)(value)
        return jnp.zeros_like(value) if weight in _SILENT else value
    source = weight.replace("experts_norm.", "ffn_norm.").replace("experts.", "ffn.")
    original = dense[f"{stack}.dense.{source}"]
    experts = is_sparse(tree) and weight.startswith("experts.")
    routing = model.routing
    assert routing is not None
    copies = routing.num_experts // pieces

    def fill(original: jax.Array) -> jax.Array:
        taken = original[0][jnp.asarray(trees[tree])]
        if not experts:
            return taken.astype(value.dtype)
        taken = _cut(taken, pieces, axis=1 if weight == "experts.down" else 2)  # [P, m, ..]
        if weight == "experts.down" and (scale := pieces / routing.gate_scale) != 1:
            taken = scale * taken
        taken = jnp.broadcast_to(taken[:, None], (len(taken), copies, *taken.shape[1:]))
        return taken.reshape(value.shape).astype(value.dtype)

    return _jitted(fill, value)(original)


def _jitted(fill: Callable[[jax.Array], jax.Array], like: jax.Array) -> Callable:
    return jax.jit(fill, out_shardings=like.sharding)


def _cut(x: jax.Array, pieces: int, axis: int) -> jax.Array:
    """[P, ..] with its axis of hidden units in `pieces` [P, pieces, ..]."""
    return jnp.stack(jnp.split(x, pieces, axis=axis), axis=1)


def pieces_of(model: Architecture) -> int:
    """m, experts that make one copy of the dense layer."""
    return model.d_ff // model.expert_width


def departures(routing: RoutingConfig, *, train: bool, pieces: int = 1) -> list[str]:
    """The settings for which an upcycled model does not compute at step 0 what the dense one did.

    Each as `KEY=VALUE (what would serve)`; none when every token keeps gates that add up to 1 and,
    of experts that are `pieces` of a dense layer, goes to whole sets of them.
    """
    end = "" if train else "_eval"
    listed = []
    if routing.router == "tokens_choose" and pieces > 1:
        if routing.top_k % pieces:
            listed.append(f"routing.top_k={routing.top_k} (a multiple of {pieces} pieces)")
        if (each := routing.num_experts // routing.expert_groups) % pieces:
            listed.append(
                f"routing.expert_groups={routing.expert_groups}, whose {each} experts are no whole "
                f"sets of {pieces} pieces (1)"
            )
        if train and routing.sample_temperature:
            listed.append(f"routing.sample_temperature={routing.sample_temperature} (0)")
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
    if train and routing.whole_expert_dropout:
        listed.append(f"routing.whole_expert_dropout={routing.whole_expert_dropout:g} (0)")
    return listed


@dataclasses.dataclass(frozen=True)
class DenseRun:
    """What is read of the dense run that `upcycle.workdir` names.

    Attributes:
      directory: of its checkpoints.
      step: that was read.
      params: its weights, or their moving averages where it has any, flat, on the devices of the
        sparse run.
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
    _check_pieces(plan.model, plan.model.routing)
    directory, step = find(options.workdir, "upcycle.workdir")
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        number = checkpoints.pick(options.step or step)
        kind = "ema/" if are_averaged(checkpoints.shapes(number)) else "params/"
        abstract = weights.abstract(Transformer(dense_of(plan.model)))
        shardings = resolve_specs(abstract.params, plan.rules, plan.mesh)
        wanted = {
            f"{kind}{name}": jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=shardings[name])
            for name, spec in abstract.params.items()
        }
        _check_fit(checkpoints, number, wanted, kind)
        stored = checkpoints.restore_some(number, wanted)
        config = checkpoints.meta(number).get("config", {})
    params = {name.removeprefix(kind): value for name, value in stored.items()}
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
    params = upcycle(state.params, dense.params, plan.model)
    ema = first_average({**params, **state.model_state}, plan.shardings)
    state = dataclasses.replace(state, params=params, ema=ema)
    title = f"Upcycled from step {dense.step} in {dense.directory}"
    return state, summary(title, _rows(plan, plan.model.routing, dense.config))


def _check_pieces(model: Architecture, routing: RoutingConfig) -> None:
    """Refuses experts that the dense layer cannot be cut into."""
    if model.d_ff % model.expert_width:
        raise ConfigError(
            f"model.expert_d_ff={model.expert_d_ff} does not divide model.d_ff={model.d_ff}, and "
            "upcycling cuts the dense layer into experts. Use a divisor of it."
        )
    if routing.num_experts % (pieces := pieces_of(model)):
        near = max(pieces, round(routing.num_experts / pieces) * pieces)
        raise ConfigError(
            f"model.expert_d_ff={model.expert_d_ff} cuts the dense layer of "
            f"model.d_ff={model.d_ff} into {pieces} experts, and routing.num_experts="
            f"{routing.num_experts} is no multiple of {pieces}. Nearest: {near}."
        )


def _check_fit(
    checkpoints: Checkpoints, number: int, wanted: dict[str, jax.ShapeDtypeStruct], kind: str
) -> None:
    stored = checkpoints.shapes(number)
    where = f"Step {number} in {checkpoints.directory} (upcycle.workdir)"
    if any("sparse." in name for name in stored):
        raise CheckpointError(
            f"{where} has experts already, and upcycling fills experts from a dense model. Give a "
            "run of routing.num_experts=0, or start from this one with --config.init_from."
        )
    if misfitting := misfits(stored, wanted, [kind]):
        raise CheckpointError(
            f"{where} is not the dense form of this model: the weights below differ. Nothing was "
            "loaded. Set the keys of model. as in the config.json beside that checkpoint; only "
            "what sparse blocks alone have (model.sparse_*, expert_*, shared_experts, router_*) "
            "and extra layers (extra_ffn*), of which the dense run has none, may be another.",
            misfitting.table(),
        )


def _rows(plan: Plan[Architecture], routing: RoutingConfig, meta: dict) -> list[tuple[str, str]]:
    blocks = sum(map(len, plan.model.all_sparse_blocks.values()))
    pieces, copies = pieces_of(plan.model), f"{routing.num_experts} copies"
    if pieces > 1:
        copies = f"{routing.num_experts} pieces, {pieces} to a copy,"
    names = [*plan.abstract.params, *plan.abstract.model_state]
    inside = (name.split(".", 2)[1:] for name in names)  # tree, weight
    new = sorted({path[-1] for path in inside if len(path) == 2 and _is_new(*path)})
    rows = [
        ("experts", f"{copies} of the feed-forward layer in {blocks} blocks"),
        ("new", ", ".join(new) + ", optimiser slots"),
    ]
    for mode, train in (("training", True), ("evaluation", False)):
        listed = departures(routing, train=train, pieces=pieces)
        says = "the dense model"
        if listed:
            says = f"not the dense model at first: {'; '.join(listed)}"
        rows.append((f"in {mode}", says))
    for key, (old, now) in differences(meta, flatten(plan.config)).items():
        if key in _MEANING:
            rows.append(("warning", f"{key} was {old!r} and is {now!r}"))
    return rows
