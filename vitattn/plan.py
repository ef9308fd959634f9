"""What a configuration of this family trains on a mesh, without any array; see
`trainlib.step.plan`.
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from trainlib.model import weights
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import Rules, batch_parts
from trainlib.step import schedules
from trainlib.step.optimizers import make_optimizer, trained_names
from trainlib.step.plan import Plan
from trainlib.step.train_state import state_shardings
from vitattn.config import RULES, check, sharding_rules, slot_rules
from vitattn.models import ModelConfig, build, configure
from vitattn.task import task_of


def make(config: ConfigDict, mesh: Mesh | None = None) -> Plan[ModelConfig]:
    """Builds the plan; `mesh` defaults to the one that the configuration asks for.

    Raises:
      ConfigError: a value that cannot work, on this mesh.
    """
    mesh = mesh or make_mesh(config.mesh.replica, config.mesh.data)
    rules = sharding_rules(config)
    check(config, batch_parts(rules, mesh))
    return _plan(config, mesh, rules, slot_rules(config))


def make_replicated(config: ConfigDict) -> Plan[ModelConfig]:
    """The plan with which weights are applied: the weights of a classifier fit on each device, on
    whatever mesh they were trained.

    Raises:
      ConfigError: a value that cannot work.
    """
    rules = sharding_rules(config) | RULES["replicated"]
    return _plan(config, make_mesh(), rules, rules)


def _plan(config: ConfigDict, mesh: Mesh, rules: Rules, slots: Rules) -> Plan[ModelConfig]:
    abstract = weights.abstract(build(config.model))
    schedule = schedules.of_run(config)
    optimizer = make_optimizer(config.optimizer, schedule, abstract.params)
    shardings = state_shardings(
        abstract,
        optimizer,
        mesh,
        rules,
        with_ema=bool(config.ema_decay),
        slot_rules=slots,
    )
    return Plan(
        config=config,
        mesh=mesh,
        rules=rules,
        model=configure(config.model),
        abstract=abstract,
        schedule=schedule,
        optimizer=optimizer,
        shardings=shardings,
        trained=frozenset(trained_names(config.optimizer, abstract.params)),
    )


def abstract_batch(plan: Plan[ModelConfig]) -> dict[str, jax.ShapeDtypeStruct]:
    """A global training batch as shapes with shardings."""
    return task_of(plan.config).abstract_batch(plan)
