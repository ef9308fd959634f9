"""From logical axis names to the mesh: one strict resolver.

A rule table maps a logical axis (`conv_in`, `batch`, `expert`) to a mesh axis, a tuple of mesh
axes, or None (replicated). The same table drives weights, optimiser slots, activations, batches and
compilation. Nothing falls back to replication in silence: an unknown axis, two dimensions on one
mesh axis, or a size that does not divide is an error that names them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib.errors import ConfigError, nearest
from trainlib.model.weights import Spec, variables
from trainlib.sharding.mesh import AXES, AnyMesh

Rules = Mapping[str, str | tuple[str, ...] | None]


def mesh_axes(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a rule table, as a tuple."""
    if rule is None:
        return ()
    return (rule,) if isinstance(rule, str) else tuple(rule)


class _DefaultRules(dict):
    """Rules of a mesh for which nobody gave any: an axis that is not listed is replicated."""

    def __contains__(self, axis: object) -> bool:
        return True

    def __missing__(self, axis: str) -> None:
        return None


def default_rules(mesh: AnyMesh) -> Rules:
    """Rules by the names of the mesh axes, for a layer in a user's own function.

    The batch is split over all of `replica`, `data` and `model` that are there, experts over
    `data`, heads, hidden units and the vocabulary over `model`. Everything else is replicated.
    Without any of these axes there are no rules.
    """
    present = [axis for axis in AXES if axis in mesh.shape]
    if not present:
        return {}
    rules = _DefaultRules(
        batch=tuple(present), layer_batch=tuple(axis for axis in present if axis != "model")
    )
    if "data" in present:
        rules["expert"] = "data"
    if "model" in present:
        rules |= dict.fromkeys(("heads", "head", "mlp", "vocab", "table", "expert_mlp"), "model")
    return rules


def resolve(
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    rules: Rules,
    mesh: AnyMesh,
) -> NamedSharding:
    """Resolves the logical axes of one array to a sharding on `mesh`.

    Raises:
      ConfigError: unknown logical axis or mesh axis, two dimensions on one mesh axis, or a
        dimension that the product of its mesh axes does not divide. The message names the array,
        the axis and the nearest valid choice.
    """
    entries, used = [], {}
    for size, axis in zip(shape, axes, strict=True):
        if axis is not None and axis not in rules:
            raise ConfigError(
                f"Weight '{name}' has the logical axis '{axis}', which no sharding rule names. "
                f"{nearest(axis, rules)}Known axes: {', '.join(sorted(rules))}."
            )
        targets = mesh_axes(rules[axis]) if axis is not None else ()
        for target in targets:
            if target not in mesh.shape:
                raise ConfigError(
                    f"The sharding rule '{axis}' -> '{target}' names no mesh axis. "
                    f"{nearest(target, mesh.shape)}Mesh axes: {', '.join(mesh.shape)}."
                )
            if target in used:
                raise ConfigError(
                    f"Weight '{name}': the logical axes '{used[target]}' and '{axis}' both map to "
                    f"the mesh axis '{target}'. Map one of them elsewhere, or to None (replicated)."
                )
            used[target] = axis
        parts = math.prod(mesh.shape[target] for target in targets)
        if size % parts:
            fits = max(n for n in range(1, parts + 1) if parts % n == 0 and size % n == 0)
            raise ConfigError(
                f"Weight '{name}' has {size} along '{axis}', which does not divide over {parts} "
                f"devices of mesh axis {'x'.join(targets)}. The largest part count that fits is "
                f"{fits}: change the mesh, or map '{axis}' to None (replicated)."
            )
        entries.append(None if not targets else targets[0] if len(targets) == 1 else targets)
    return NamedSharding(mesh, P(*entries))


def resolve_specs(
    specs: Mapping[str, Spec], rules: Rules, mesh: AnyMesh
) -> dict[str, NamedSharding]:
    """Resolves every declared weight."""
    return {name: resolve(name, s.shape, s.axes, rules, mesh) for name, s in specs.items()}


def shard_module(module: nnx.Module, mesh: Mesh, rules: Rules | None = None) -> None:
    """Moves the weights of a module over the devices of a mesh, in place.

    What a layer of ours declares decides: experts lie over the mesh axis `data`, heads and hidden
    units over `model`. Weights of other layers are copied to every device. An optimiser that is
    built afterwards has its slots in the same places. Layers find the mesh where `jax.set_mesh`
    says it, around the training.

    Example:
      >>> mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> moe.shard_module(model, mesh)
      >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
      >>> with jax.set_mesh(mesh):
      ...     train_step(model, optimizer, batch)

    Args:
      module: a module whose weights are arrays.
      mesh: with one or more of the axes `replica`, `data` and `model`.
      rules: logical axis -> mesh axis; None: `default_rules`.

    Raises:
      ConfigError: no axis of the mesh has one of these names, or a dimension does not divide.
    """
    rules = rules or default_rules(mesh)
    if not rules:
        raise ConfigError(
            f"The axes of the mesh are {', '.join(mesh.axis_names)}, and none of them is known. "
            f"Name them {', '.join(AXES)}, as far as there are any; experts lie over 'data'."
        )
    for name, variable in variables(nnx.state(module)).items():
        value = variable.get_value()
        if not hasattr(value, "shape"):
            continue
        axes = variable.get_metadata().get("axes") or (None,) * value.ndim
        place = resolve(name, value.shape, axes, rules, mesh)
        variable.set_value(jax.device_put(value, place))


def batch_sharding(rules: Rules, mesh: AnyMesh) -> NamedSharding:
    """Sharding of arrays whose first dimension is the batch."""
    axes = mesh_axes(rules["batch"])
    return NamedSharding(mesh, P(axes if axes else None))


def batch_parts(rules: Rules, mesh: AnyMesh) -> int:
    """Number of parts the batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes(rules["batch"]))
