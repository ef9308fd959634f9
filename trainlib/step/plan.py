"""What a configuration trains on a mesh, without any array: the model, the optimiser and where each
array lies. Training, evaluation, prediction and compilation for a pod all start from it.

A family's `plan.make(config, mesh)` builds it; what is compiled from it is in `trainlib.step.step`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from trainlib.errors import ConfigError
from trainlib.keys import brief
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


def check_learns(plan: Plan[Model], freezing: Mapping[str, tuple[Any, Any]]) -> None:
    """Of a run that starts from new weights.

    Args:
      plan: of the run.
      freezing: keys that keep weights as they are -> their values here, and with which they do not.

    Raises:
      ConfigError: weights would stay as they are drawn at random.
    """
    weights, learn = len(plan.abstract.params), len(plan.trained)
    if learn == weights:
        return
    changed = {key: (value, off) for key, (value, off) in freezing.items() if value != off}
    keys = " and ".join(f"{key}={brief(value)}" for key, (value, _) in changed.items())
    way = " ".join(
        f"--config.{key}={'' if off == [] else off}" for key, (_, off) in changed.items()
    )
    raise ConfigError(
        f"With {keys} {weights - learn} of {weights} weights stay as they start, and without "
        "init_from they start at random. Name a run or an import with --config.init_from=DIR, or "
        f"let all of them learn with {way}."
    )
