"""Sparse upcycling (arXiv 2212.05055): a dense checkpoint becomes a mixture of experts.

Each expert of a sparse block starts as a copy of the dense feed-forward layer that stood there; the
router is new, and so is the optimiser state. The gates of a token add up to 1, so the layer
computes what the dense one did as long as no choice is dropped: capacity large enough,
second-choice policy "all", and `routing.normalize_gates` with at least two choices. A dense layer
beside the experts (`model.extra_ffn`) starts with a zero last matrix and adds nothing at first.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from moe.evaluate import read_params
from moe.models.architecture import Architecture
from moe.models.stack import TREES
from moe.models.transformer import Transformer
from moe.plan import Plan
from trainlib import nn, sharding
from trainlib.checkpoint import Checkpoints
from trainlib.errors import CheckpointError, ConfigError
from trainlib.state import TrainState

_NEW = ("experts.router", "experts.bias")  # kept as they were initialised


def dense_of(model: Architecture) -> Architecture:
    """The dense model that `model` can start from."""
    return dataclasses.replace(model, routing=None)


def upcycle(params: nn.Arrays, dense: nn.Arrays, model: Architecture) -> nn.Arrays:
    """Fills the weights of a sparse model from those of the dense one, weight by weight.

    Args:
      params: name -> freshly initialised weight of `model`; its shardings are kept.
      dense: name -> weight of `dense_of(model)`.
      model: the sparse architecture.

    Raises:
      ConfigError: `model` is dense.
    """
    if model.routing is None:
        raise ConfigError(
            "upcycle.workdir is set and routing.num_experts is 0: a dense model has no experts to "
            "fill. Ask for experts, or unset upcycle.workdir."
        )
    return {name: _filled(name, value, dense, model) for name, value in params.items()}


def _filled(name: str, value: jax.Array, dense: nn.Arrays, model: Architecture) -> jax.Array:
    stack, _, rest = name.partition(".")
    tree, _, weight = rest.partition(".")
    if stack not in model.stacks or tree not in TREES:
        return dense[name]
    if tree == "sparse" and weight in _NEW:
        return value
    if tree == "sparse" and weight.startswith("ffn"):
        return jnp.zeros_like(value) if weight == "ffn.down" else value
    source = weight.replace("experts_norm.", "ffn_norm.").replace("experts.", "ffn.")
    original = dense[f"{stack}.dense.{source}"]
    experts = tree == "sparse" and weight.startswith("experts.")
    numbers = _numbers(stack, tree, model)

    def fill(original: jax.Array) -> jax.Array:
        taken = original[0][jnp.asarray(numbers)]
        if experts:
            taken = taken[:, None]
        return jnp.broadcast_to(taken, value.shape).astype(value.dtype)

    return jax.jit(fill, out_shardings=value.sharding)(original)


def _numbers(stack: str, tree: str, model: Architecture) -> list:
    """Numbers of the blocks of a tree, nested as its weights are: [P] or [P][n]."""
    periods, *counts = model.periods(stack)
    first = sum(counts[: TREES.index(tree)])
    starts = [period * sum(counts) + first for period in range(periods)]
    if tree == "sparse":
        return starts
    return [[start + i for i in range(counts[TREES.index(tree)])] for start in starts]


def start(plan: Plan, state: TrainState) -> TrainState:
    """The first state of a run that starts from the dense run `upcycle.workdir`.

    Raises:
      CheckpointError: there is no such run or step, or it holds another model.
    """
    options = plan.config.upcycle
    folder = Path(options.workdir) / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(
            f"upcycle.workdir={options.workdir} holds no run: there is no {folder}. Give the "
            "--workdir of a finished training of the dense model."
        )
    abstract = nn.abstract(Transformer(dense_of(plan.model)))
    places = sharding.resolve_specs(abstract.params, plan.rules, plan.mesh)
    checkpoints = Checkpoints(folder)
    number = checkpoints.pick(options.step or None)
    dense = read_params(checkpoints, number, abstract, places)
    checkpoints.close()
    return dataclasses.replace(state, params=upcycle(state.params, dense, plan.model))
