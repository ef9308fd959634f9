"""What a configuration trains on a mesh, without any array: the model, the optimiser and where each
array lies. Training, evaluation, prediction and compilation for a pod all start from it.

A family's `plan.make(config, mesh)` builds it; what is compiled from it is in `trainlib.step.step`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Generic, TypeVar

import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from trainlib.model.weights import Abstract
from trainlib.sharding import rules as sharding
from trainlib.sharding.rules import Rules
from trainlib.step import train_state
from trainlib.step.train_state import TrainState

Model = TypeVar("Model", covariant=True)  # a family's frozen configuration of a model


@dataclasses.dataclass(frozen=True)
class Plan(Generic[Model]):
    """Everything that follows from a configuration and a mesh.

    Attributes:
      config: the resolved configuration.
      mesh: the devices, by axis.
      rules: logical axis -> mesh axis.
      model: the model's own configuration, resolved and checked.
      abstract: the model's weights without arrays.
      schedule: number of applied updates -> learning rate.
      optimizer: over the flat dictionary of weights.
      shardings: of every leaf of the train state.
      trained: names of the weights that learn.
      gradient_norms: metric of a train step -> weights whose gradients it measures: one norm for
        each index of their first axis, as of the layers of a stack.
    """

    config: ConfigDict
    mesh: Mesh
    rules: Rules
    model: Model
    abstract: Abstract
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    shardings: TrainState
    trained: frozenset[str]
    gradient_norms: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of every array of a batch: its first dimension is split."""
        return sharding.batch_sharding(self.rules, self.mesh)

    @property
    def weight_shardings(self) -> dict[str, NamedSharding]:
        """Name -> sharding, of weights and running statistics."""
        return {**self.shardings.params, **self.shardings.model_state}

    def abstract_state(self) -> TrainState:
        """The train state as shapes with shardings."""
        return train_state.abstract_state(self.abstract, self.optimizer, self.shardings)
