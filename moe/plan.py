"""What a configuration trains on a mesh: model, optimiser and the place of every array, without any
array. Training, evaluation and compilation ahead of time start from it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from moe import config as config_lib
from moe import objective as pretrain
from moe.data.sources.packing import batch_fields
from moe.kernels.grouped import check_platform
from moe.layers import sparse
from moe.models import architecture
from moe.models.architecture import Architecture
from moe.models.transformer import Transformer
from moe.routing.config import capacity
from moe.start.subsets import frozen_patterns
from trainlib.model import weights as nn
from trainlib.sharding.constrain import activate, platform
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import Rules, batch_parts, batch_sharding
from trainlib.step import schedules, step
from trainlib.step import train_state as state_lib
from trainlib.step.optimizers import make_optimizer, trained_names
from trainlib.step.train_state import TrainState, state_shardings


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that follows from a configuration and a mesh.

    Attributes:
      config: the resolved configuration.
      mesh: the mesh.
      rules: logical axis -> mesh axis.
      model: the architecture.
      abstract: the model without arrays.
      schedule: step -> learning rate.
      optimizer: over the flat weights.
      shardings: of every leaf of the train state.
      trained: names of the weights that learn.
    """

    config: ConfigDict
    mesh: Mesh
    rules: Rules
    model: Architecture
    abstract: nn.Abstract
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    shardings: TrainState
    trained: frozenset[str]

    @property
    def rows(self) -> NamedSharding:
        """Sharding of a batch."""
        return batch_sharding(self.rules, self.mesh)

    @property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        """Stack -> numbers of its sparse blocks."""
        return {stack: self.model.sparse_blocks(stack) for stack in self.model.stacks}

    @property
    def lengths(self) -> dict[str, int]:
        """Stack -> tokens of a row."""
        return {stack: self.config.data[f"{stack}_length"] for stack in self.model.stacks}

    def abstract_state(self) -> TrainState:
        """The train state as shapes and places, without arrays."""
        return state_lib.abstract_state(self.abstract, self.optimizer, self.shardings)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """A global training batch as shapes and places."""
        size, batch = self.config.batch_size, {}
        for name in batch_fields(self.model.kind):
            length = self.lengths[name.partition("_")[0]]
            dtype = jnp.float32 if name.endswith("weights") else jnp.int32
            batch[name] = jax.ShapeDtypeStruct((size, length), dtype, sharding=self.rows)
        return batch

    def train_step(self):
        """The compiled train step `(state, batch) -> (state, sums)`; compiles at its first call."""
        objective = pretrain.Objective(**dict(self.config.objective.items()))
        loss = pretrain.make_loss(self.abstract, self.model.routing, objective)
        made = step.make_train_step(
            loss,
            self.optimizer,
            seed=self.config.seed,
            microbatches=self.config.microbatches,
            trained=None if self.trained == set(self.abstract.params) else self.trained,
        )
        return step.compile_step(made, self.shardings, self.mesh, self.rules)

    def eval_step(self):
        """The compiled evaluation step `(params, {}, batch) -> sums`."""
        made = pretrain.make_evaluate(self.abstract)
        return step.compile_eval(made, self.shardings, self.mesh, self.rules)


def make(config: ConfigDict, mesh: Mesh | None = None) -> Plan:
    """Builds the plan; `mesh` defaults to the one that the configuration asks for.

    Raises:
      ConfigError: a value that cannot work, on this mesh.
    """
    mesh = mesh or make_mesh(config.mesh.replica, config.mesh.data, config.mesh.model)
    rules = config_lib.sharding_rules(config)
    config_lib.check(config, batch_parts(rules, mesh))
    model = architecture(config.model, config.routing)
    batch_fields(model.kind)
    pretrain.check_objective(model.kind, config.data.objective)
    _check_routing(config, model, mesh, rules)
    abstract = nn.abstract(Transformer(model))
    schedule = schedules.make_schedule(config.schedule, config.steps)
    options = dict(config.optimizer.items())
    subset = config.finetune.train, config.finetune.router_with_moe
    options["frozen"] = *options["frozen"], *frozen_patterns(*subset, abstract.params)
    trained = frozenset(trained_names(options, abstract.params))
    optimizer = make_optimizer(options, schedule, abstract.params, config_lib.STACKED_AXES)
    slot_rules = config_lib.slot_rules(config)
    shardings = state_shardings(
        abstract, optimizer, mesh, rules, with_ema=False, slot_rules=slot_rules
    )
    return Plan(config, mesh, rules, model, abstract, schedule, optimizer, shardings, trained)


def _check_routing(config: ConfigDict, model: Architecture, mesh: Mesh, rules: Rules) -> None:
    """Refuses experts, groups, capacities and kernels that do not fit the mesh and the batch."""
    if model.routing is not None and model.routing.dispatch == "grouped":
        with activate(mesh, rules):
            check_platform(platform())
    lengths = {"encoder": config.data.encoder_length, "decoder": config.data.decoder_length}
    train, held_out = config.batch_size // config.microbatches, config.eval_batch_size
    for stack in model.stacks:
        routing = model.stack_routing(stack)
        if routing is None:
            continue
        place = sparse.placement(mesh, rules, routing)
        for sequences, training in ((train, True), (held_out or config.batch_size, False)):
            size = sparse.group_tokens(routing, sequences, lengths[stack], place)
            if not routing.dropless:
                capacity(routing, size, train=training)
