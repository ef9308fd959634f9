"""Weights declared once: shape, logical axes and initialiser in one place, arrays made later.

Without `rngs` a model is built without making an array: each weight is an `nnx.Param` that holds a
`jax.ShapeDtypeStruct`, its logical axes and its initialiser. So counts, shardings and compilations
need no memory, and `initialise` makes each leaf on its own, already sharded. With `rngs` each
weight is an array at once, and the module is used as any other of Flax. Outside a module, weights
are flat dictionaries `{"conv3_x.1.conv1.kernel": array}`: the names that
checkpoints, masks and exports use.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.core import Tracer
from jax.sharding import Sharding

from trainlib.errors import ConfigError, shown

Initializer = Callable[..., jax.Array]  # (key, shape, dtype) -> array
Arrays = dict[str, jax.Array]
M = TypeVar("M", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is declared about one weight: `axes` names each dimension, `init` fills it.

    A weight of a layer of others, such as `nnx.Linear`, declares neither: its axes are None, so it
    is replicated, and its `init` is a `Fixed` value.
    """

    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str | None, ...]
    init: Initializer

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Fixed:
    """Stands for an initialiser where a weight has its value from elsewhere, whatever the key."""

    value: jax.Array

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return self.value


class Declared(jax.ShapeDtypeStruct):
    """The value of a weight without an array. Layers read weights as `self.kernel[...]`."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> jax.Array:
        raise ConfigError(
            f"This layer was built with rngs=None, so its weights, here one of the shape "
            f"{self.shape}, are declared and have no arrays. Build it with rngs=nnx.Rngs(0) to "
            "call it, or make sharded arrays with `trainlib.model.weights.abstract`, `initialise` "
            "and `bind`."
        )


def _value(
    shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer, rngs: nnx.Rngs | None, dtype
) -> Declared | jax.Array:
    if len(shape) != len(axes):
        raise ValueError(f"A weight of shape {shape} needs {len(shape)} logical axes, not {axes}.")
    if not all(isinstance(size, Integral) and size > 0 for size in shape):
        sizes = ", ".join(f"{axis} {size}" for axis, size in zip(axes, shape, strict=True))
        raise ConfigError(
            f"A layer needs a weight with the dimensions {sizes}: each has to be a whole number of "
            "at least 1. Change the widths that the layer is built with."
        )
    if rngs is None:
        return Declared(tuple(shape), jnp.dtype(dtype))
    if not hasattr(rngs, "params"):
        raise ConfigError(
            f"rngs={shown(repr(rngs), 60)} has no keys for weights: give nnx.Rngs(0), with a seed "
            "of yours, or None to declare the weights without making arrays."
        )
    key = rngs.params()
    if isinstance(key, Tracer):  # inside a program of the caller, which compiles it all
        return init(key, tuple(shape), jnp.dtype(dtype))
    return _maker(init, tuple(shape), jnp.dtype(dtype), None)(key)


def declare(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    init: Initializer,
    rngs: nnx.Rngs | None = None,
    dtype=jnp.float32,
) -> nnx.Param:
    """Declares a trained weight: abstract without `rngs`, an array with.

    Args:
      shape: its dimensions.
      axes: one logical axis name a dimension, resolved to mesh axes by `trainlib.sharding.rules`.
      init: `(key, shape, dtype) -> array`.
      rngs: keys of a module that is to be used at once, as any Flax module is; None where
        `initialise` makes the array later, on its devices.
      dtype: what is stored; layers cast to their compute type on use.

    Raises:
      ConfigError: a dimension that is no whole number of at least 1, or rngs without keys.
    """
    return nnx.Param(_value(shape, axes, init, rngs, dtype), axes=tuple(axes), init=init)


def declare_stat(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    init: Initializer,
    rngs: nnx.Rngs | None = None,
    dtype=jnp.float32,
) -> nnx.BatchStat:
    """Declares a running statistic: kept in `model_state`, not trained; see `declare`."""
    return nnx.BatchStat(_value(shape, axes, init, rngs, dtype), axes=tuple(axes), init=init)


def flatten(tree: Mapping) -> dict:
    """Nested pure dictionary (string or integer keys) -> flat dictionary with dotted names."""
    flat = traverse_util.flatten_dict(dict(tree))
    return {".".join(str(part) for part in path): value for path, value in flat.items()}


def unflatten(flat: Mapping) -> dict:
    """Inverse of `flatten`; parts that are numbers become integers, as in NNX lists."""
    paths = {
        tuple(int(part) if part.isdigit() else part for part in name.split(".")): value
        for name, value in flat.items()
    }
    return traverse_util.unflatten_dict(paths)


@dataclasses.dataclass(frozen=True)
class Abstract(Generic[M]):
    """A model without its arrays: the graph definition, the specs of weights and statistics."""

    graphdef: nnx.GraphDef
    params: dict[str, Spec]
    model_state: dict[str, Spec]

    @property
    def param_count(self) -> int:
        """Number of trained parameters (running statistics not counted, as the papers count)."""
        return sum(spec.size for spec in self.params.values())

    def bind(self, params: Mapping[str, jax.Array], model_state: Mapping[str, jax.Array]) -> M:
        """Puts arrays into the model; cheap, meant for the inside of a jitted function."""
        return nnx.merge(self.graphdef, unflatten(params), unflatten(model_state))

    def split(self, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(weights, running statistics) of a dictionary that holds both."""
        params = {name: arrays[name] for name in self.params}
        return params, {name: arrays[name] for name in self.model_state}


def _spec(name: str, variable: nnx.Variable) -> Spec:
    """What a variable declares, or what follows from its value."""
    value, declared = variable.get_value(), variable.get_metadata()
    axes, init = declared.get("axes"), declared.get("init")
    if init is None:
        if isinstance(value, jax.ShapeDtypeStruct):
            raise ValueError(
                f"Weight '{name}' has neither a value nor an initialiser. Build its layer with "
                "rngs, or declare it with `trainlib.model.weights.declare`."
            )
        init = Fixed(value)
    return Spec(value.shape, value.dtype, axes or (None,) * len(value.shape), init)


def variables(state: nnx.State) -> dict[str, nnx.Variable]:
    """The variables of a state by their dotted names."""
    found = {}

    def visit(node, path: tuple) -> None:
        if isinstance(node, nnx.Variable):
            found[".".join(str(part) for part in path)] = node
        else:
            for key, child in node.items():
                visit(child, (*path, key))

    visit(state, ())
    return found


def abstract(model: M) -> Abstract[M]:
    """Splits a freshly built model into its graph definition and the specs of what it declares.

    Layers of others, such as `nnx.Linear`, may be part of it: their weights are replicated, and
    `initialise` gives the values that they were built with. A layer that moves its running
    statistics itself (`nnx.BatchNorm`, and ours built with `rngs`) moves them in the bound model
    alone: a loss function with such a layer has to return `stats(model)` as its `model_state`.

    Raises:
      ValueError: a weight has neither value nor initialiser; or the model holds variables that are
        no weights and no running statistics, such as the random state of `nnx.Dropout`.
    """
    graphdef, params, model_state, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    if others := variables(rest):
        name, variable = next(iter(others.items()))
        raise ValueError(
            f"'{name}' of the model is of the type {type(variable).__name__}; only weights "
            "(nnx.Param) and running statistics (nnx.BatchStat) can be carried outside a module."
        )
    specs = [
        {name: _spec(name, variable) for name, variable in variables(state).items()}
        for state in (params, model_state)
    ]
    return Abstract(graphdef, *specs)


def stats(model: nnx.Module) -> Arrays:
    """Reads the running statistics back from a bound model after a call."""
    return flatten(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


class Observed(nnx.Variable):
    """What a layer saw in one training call and leaves for the step; made anew by each call."""


def observed(model: nnx.Module) -> dict:
    """Reads what the layers of a bound model left in a call: name of the layer -> value."""
    observations = flatten(nnx.to_pure_dict(nnx.state(model, Observed)))
    return {name.rpartition(".")[0]: value for name, value in observations.items()}


def leaf_key(key: jax.Array, name: str) -> jax.Array:
    """A key for one leaf, from its name alone: adding a layer leaves the others as they were."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


@functools.cache
def _maker(init: Initializer, shape: tuple[int, ...], dtype, sharding: Sharding | None) -> Callable:
    # One compilation for each distinct (initialiser, shape, sharding), a few dozen in a model. Each
    # runs once: on a CPU, compiling with little optimisation takes a fifth of the time.
    quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    make = functools.partial(init, shape=shape, dtype=dtype)
    return jax.jit(make, out_shardings=sharding, compiler_options=quick)


def initialise(
    specs: Mapping[str, Spec], key: jax.Array, shardings: Mapping[str, Sharding] | None = None
) -> Arrays:
    """Makes every array, leaf by leaf and already sharded, so that no second copy of the model ever
    exists.

    Args:
      specs: name -> Spec.
      key: one key; each leaf derives its own from its name, so values do not depend on mesh or
        order.
      shardings: name -> sharding; None puts all on the default device.
    """
    arrays = {}
    for name, spec in specs.items():
        sharding = shardings[name] if shardings else None
        if isinstance(spec.init, Fixed):
            # A copy: the step donates its state, and the module of the user keeps its arrays.
            arrays[name] = jax.device_put(jnp.copy(spec.init.value), sharding)
            continue
        make = _maker(spec.init, spec.shape, spec.dtype, sharding)
        arrays[name] = make(leaf_key(key, name))
    return arrays
