"""What a configuration trains on a mesh: model, optimiser and the place of every array, without any
array. Training and compilation ahead of time start from it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from trainlib.model import weights as nn
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import Rules, batch_parts, batch_sharding
from trainlib.step import schedules, step
from trainlib.step import train_state as state_lib
from trainlib.step.optimizers import make_optimizer, trained_names
from trainlib.step.train_state import TrainState
from vitattn import config as config_lib
from vitattn.classification import objective as classify
from vitattn.models import build, configure


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that follows from a configuration and a mesh.

    Attributes:
      config: the resolved configuration.
      mesh: the mesh.
      rules: logical axis -> mesh axis.
      abstract: the model without arrays.
      schedule: step -> learning rate.
      optimizer: over the flat weights.
      shardings: of every leaf of the train state.
    """

    config: ConfigDict
    mesh: Mesh
    rules: Rules
    abstract: nn.Abstract
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    shardings: TrainState

    @property
    def rows(self) -> NamedSharding:
        """Sharding of a batch."""
        return batch_sharding(self.rules, self.mesh)

    def abstract_state(self) -> TrainState:
        """The train state as shapes and places, without arrays."""
        return state_lib.abstract_state(self.abstract, self.optimizer, self.shardings)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """A global training batch as shapes and places."""
        size = self.config.batch_size
        shapes = {
            "image": ((size, *configure(self.config.model).size, 3), jnp.float32),
            "label": ((size,), jnp.int32),
            "weight": ((size,), jnp.float32),
        }
        return {
            name: jax.ShapeDtypeStruct(*shapes[name], sharding=self.rows)
            for name in classify.FIELDS
        }

    def train_step(self):
        """The compiled train step `(state, batch) -> (state, sums)`; compiles at its first call."""
        config = self.config
        made = step.make_train_step(
            classify.make_loss(self.abstract, config.label_smoothing),
            self.optimizer,
            seed=config.seed,
            microbatches=config.microbatches,
            ema_decay=config.ema_decay,
            trained=trained_names(config.optimizer, self.abstract.params),
        )
        return step.compile_step(made, self.shardings, self.mesh, self.rules)

    def eval_step(self):
        """The compiled evaluation step `(params, statistics, batch) -> sums`."""
        made = classify.make_evaluate(self.abstract)
        return step.compile_eval(made, self.shardings, self.mesh, self.rules)


def make(config: ConfigDict, mesh: Mesh | None = None) -> Plan:
    """Builds the plan; `mesh` defaults to the one that the configuration asks for.

    Raises:
      ConfigError: a value that cannot work, on this mesh.
    """
    mesh = mesh or make_mesh(config.mesh.replica, config.mesh.data)
    rules = config_lib.sharding_rules(config)
    config_lib.check(config, batch_parts(rules, mesh))
    abstract = nn.abstract(build(config.model))
    schedule = schedules.make_schedule(config.schedule, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, abstract.params)
    shardings = state_lib.state_shardings(
        abstract,
        optimizer,
        mesh,
        rules,
        with_ema=bool(config.ema_decay),
        slot_rules=config_lib.slot_rules(config),
    )
    return Plan(config, mesh, rules, abstract, schedule, optimizer, shardings)
