"""What a configuration of this family trains on a mesh, without any array; see
`trainlib.step.plan`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moe import objective
from moe.config import STACKED_AXES, check, schema, sharding_rules, slot_rules
from moe.data.sources.packing import batch_fields
from moe.eval.measured import ROUTER
from moe.kernels.grouped import check_platform
from moe.models.architecture import Architecture, is_sparse
from moe.models.transformer import Transformer
from moe.observatory.options import UNWATCHED
from moe.routing import effects
from moe.routing.config import capacity
from moe.routing.placement import group_tokens, resolve_placement
from moe.start.subsets import frozen_patterns
from moe.start.tuned import check_frozen, learning, tuned
from trainlib import config as config_lib
from trainlib.errors import ConfigError
from trainlib.model import weights
from trainlib.sharding.constrain import activate, platform
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import Rules, batch_parts
from trainlib.step import schedules
from trainlib.step.optimizers import make_optimizer, trained_names
from trainlib.step.plan import Plan
from trainlib.step.train_state import state_shardings


def make(config: ConfigDict, mesh: Mesh | None = None) -> Plan[Architecture]:
    """Builds the plan; `mesh` defaults to the one that the configuration asks for.

    Raises:
      ConfigError: a value that cannot work, on this mesh.
    """
    mesh = mesh or make_mesh(config.mesh.replica, config.mesh.data, config.mesh.model)
    rules = sharding_rules(config)
    check(config, batch_parts(rules, mesh))
    model = tuned(config)
    batch_fields(model.kind)  # an encoder alone has no targets
    objective.check_objective(model.kind, config.data.objective)
    _check_effects(config, model)
    _check_routing(config, model, mesh, rules)
    abstract = weights.abstract(Transformer(model))
    schedule = schedules.of_run(config)
    options = dict(config.optimizer.items())
    learned = learning(config.finetune, abstract.params)
    options["frozen"] = *options["frozen"], *frozen_patterns(learned, abstract.params)
    trained = frozenset(trained_names(options, abstract.params))
    check_frozen(config, trained)
    optimizer = make_optimizer(options, schedule, abstract.params, STACKED_AXES)
    shardings = state_shardings(
        abstract,
        optimizer,
        mesh,
        rules,
        with_ema=bool(config.ema_decay),
        slot_rules=slot_rules(config),
    )
    return Plan(
        config=config,
        mesh=mesh,
        rules=rules,
        model=model,
        abstract=abstract,
        schedule=schedule,
        optimizer=optimizer,
        shardings=shardings,
        trained=trained,
        gradient_norms=_router_norms(model) if config.router.log_every else {},
    )


def _router_norms(model: Architecture) -> dict[str, tuple[str, ...]]:
    """Metric -> the routers of the sparse blocks of a stack, in the order of the blocks."""
    return {
        f"{ROUTER}{stack}/grad_norm": tuple(
            f"{stack}.{tree}.experts.router" for tree in model.trees(stack) if is_sparse(tree)
        )
        for stack, blocks in model.all_sparse_blocks.items()
        if blocks
    }


def lengths(plan: Plan[Architecture]) -> dict[str, int]:
    """Stack -> tokens of a sequence."""
    return {stack: plan.config.data[f"{stack}_length"] for stack in plan.model.stacks}


def abstract_batch(plan: Plan[Architecture]) -> dict[str, jax.ShapeDtypeStruct]:
    """A global training batch as shapes with shardings."""
    size, batch = plan.config.batch_size, {}
    for name in objective.fields(plan):
        length = lengths(plan)[name.partition("_")[0]]
        dtype = jnp.float32 if name.endswith("weights") else jnp.int32
        batch[name] = jax.ShapeDtypeStruct((size, length), dtype, sharding=plan.batch_sharding)
    return batch


def _check_effects(config: ConfigDict, model: Architecture) -> None:
    """Refuses options of routers that do nothing in any sparse stack, where it is known who set
    them. What a recipe sets and a command line, or a variant, then puts out of play is no mistake,
    and runs and imports have what they had.
    """
    origin = config_lib.origin_of(config)
    if model.routing is None or not origin:
        return
    values, defaults = config_lib.flatten(config), schema()

    def rank(key: str) -> int:  # what is set later counts more
        where = origin.get(key, "")
        return 2 if where in ("command line", "configs.load") else int("variant" in where)

    def refuse(key: str, needed: str, wanted: str) -> None:
        noted = origin.get(key, "").endswith((".json", "init_from"))
        if noted or rank(key) < rank(needed):
            return
        raise ConfigError(
            f"{key}={values[key]!r} does nothing here, where {needed}={values[needed]!r}. Leave it "
            f"at {defaults[key][0]!r}, or set {needed} to {wanted}."
        )

    routers = [routing for stack in model.stacks if (routing := model.stack_routing(stack))]
    for option in effects.NEEDS:
        need = effects.lacking(option, model.routing, routers)
        if need is not None:
            refuse(f"routing.{option}", need.key, need.value)
    for needed, options in UNWATCHED.items():
        for key in (f"router.{option}" for option in options):
            if not values[f"router.{needed}"] and values[key] not in (defaults[key][0], 0):
                refuse(key, f"router.{needed}", repr(defaults[f"router.{needed}"][0]))


def _check_routing(config: ConfigDict, model: Architecture, mesh: Mesh, rules: Rules) -> None:
    """Refuses experts, groups, capacities and kernels that do not fit the mesh and the batch."""
    if model.routing is not None and model.routing.dispatch == "grouped":
        with activate(mesh, rules):
            check_platform(platform())
    tokens = {"encoder": config.data.encoder_length, "decoder": config.data.decoder_length}
    train, held_out = config.batch_size // config.microbatches, config.eval_batch_size
    for stack in model.stacks:
        routing = model.stack_routing(stack)
        if routing is None:
            continue
        placement = resolve_placement(mesh, rules, routing)
        for sequences, training in ((train, True), (held_out or config.batch_size, False)):
            size = group_tokens(routing, sequences, tokens[stack], placement)
            if not routing.dropless:
                capacity(routing, size, train=training)
