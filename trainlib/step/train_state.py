"""The train state: plain dictionaries in one frozen dataclass, made sharded, leaf by leaf."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib.model import statistics
from trainlib.model.weights import Abstract, Arrays, Spec, initialise
from trainlib.sharding.rules import Rules, resolve_specs
from trainlib.step.slots import slot_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step reads and writes, and what a checkpoint holds.

    Attributes:
      step: int32 scalar, number of finished steps (skipped ones included).
      params: name -> f32 weight.
      model_state: name -> running statistic.
      opt_state: optimiser slots (optax tree).
      ema: name -> moving average of weights and statistics; empty when it is off.
      skipped: int32 [2]: updates skipped because they were not finite, in all and in a row.
      counts: int32 [S], updates of each layer's running statistics, see
        `trainlib.model.statistics`; () where the model has none.
    """

    step: Any
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any
    skipped: Any
    counts: Any = ()

    @property
    def weights(self) -> Arrays:
        """Weights and running statistics by their names, as an evaluation reads them."""
        return {**self.params, **self.model_state}

    @property
    def evaluated(self) -> Arrays:
        """What is evaluated of a run: moving averages where there are any, else `weights`."""
        return self.ema or self.weights


def state_shardings(
    abstract: Abstract,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules,
    *,
    with_ema: bool,
    slot_rules: Rules | None = None,
) -> TrainState:
    """The sharding of every leaf of the state.

    Optimiser slots follow their weights, or lie by `slot_rules`: with weights whole on every device
    and slots split, each device updates its part, and the parts are gathered (ZeRO stage 1, arXiv
    1910.02054).
    """
    params = resolve_specs(abstract.params, rules, mesh)
    places = params if slot_rules is None else resolve_specs(abstract.params, slot_rules, mesh)
    model_state = resolve_specs(abstract.model_state, rules, mesh)
    slots = jax.eval_shape(optimizer.init, _structs(abstract.params))
    whole = NamedSharding(mesh, P())
    return TrainState(
        step=whole,
        params=params,
        model_state=model_state,
        opt_state=slot_shardings(slots, abstract.params, places, mesh),
        ema={**params, **model_state} if with_ema else {},
        skipped=whole,
        counts=whole if statistics.layers(model_state) else (),
    )


def _structs(specs: dict[str, Spec]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in specs.items()}


def abstract_state(
    abstract: Abstract, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """The state as shapes with shardings: for compilation and for restoring, without arrays."""
    params, model_state = _structs(abstract.params), _structs(abstract.model_state)
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=jax.eval_shape(optimizer.init, params),
        ema={**params, **model_state} if shardings.ema else {},
        skipped=jax.ShapeDtypeStruct((2,), jnp.int32),
        counts=jax.eval_shape(lambda: statistics.fresh(model_state)),
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def whole_bytes(state: TrainState) -> int:
    """Bytes of a state, of one copy: what a checkpoint takes on the disk."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def create(
    abstract: Abstract,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    shardings: TrainState,
) -> TrainState:
    """Makes the first state. Values depend on `key` and names alone, not on the mesh."""
    params: Arrays = initialise(abstract.params, key, shardings.params)
    model_state: Arrays = initialise(abstract.model_state, key, shardings.model_state)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(
        step=jax.device_put(jnp.int32(0), shardings.step),
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        ema=first_average({**params, **model_state}, shardings),
        skipped=jax.device_put(jnp.zeros(2, jnp.int32), shardings.skipped),
        counts=jax.device_put(statistics.fresh(model_state), shardings.counts),
    )


def first_average(weights: Arrays, shardings: TrainState) -> Arrays:
    """The moving averages of a run that begins with `weights`: copies of them, or {} where it has
    none.
    """
    if not shardings.ema:
        return {}
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.ema)
    return copy(weights)
