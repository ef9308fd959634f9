"""From logical axis names to the mesh: one strict resolver, one place for activation constraints.

A rule table maps a logical axis (`conv_in`, `batch`, `expert`) to a mesh axis, a tuple of mesh
axes, or None (replicated). The same table drives weights, optimiser slots, batches and compilation.
Nothing falls back to replication in
silence: an unknown axis, two dimensions on one mesh axis, or a size that does not divide is an
error that names them.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib.errors import ConfigError, nearest
from trainlib.model.weights import Spec

Rules = Mapping[str, str | tuple[str, ...] | None]

_ACTIVE: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar(
    "mesh", default=None
)
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def _mesh_axes(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if rule is None:
        return ()
    return (rule,) if isinstance(rule, str) else tuple(rule)


def resolve(
    name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], rules: Rules, mesh: Mesh
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
        targets = _mesh_axes(rules[axis]) if axis is not None else ()
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


def resolve_specs(specs: Mapping[str, Spec], rules: Rules, mesh: Mesh) -> dict[str, NamedSharding]:
    """Resolves every declared weight."""
    return {name: resolve(name, s.shape, s.axes, rules, mesh) for name, s in specs.items()}


def batch_sharding(rules: Rules, mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first dimension is the batch."""
    axes = _mesh_axes(rules["batch"])
    return NamedSharding(mesh, P(axes if axes else None))


def batch_parts(rules: Rules, mesh: Mesh) -> int:
    """Number of parts the batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in _mesh_axes(rules["batch"]))


@contextlib.contextmanager
def activate(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Makes `constrain`, `batch_local` and `platform` act on this mesh while a function is
    traced.
    """
    token = _ACTIVE.set((mesh, rules))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def active() -> tuple[Mesh, Rules] | None:
    """The mesh and rules that a step is being traced for, for layers that are shard_maps of their
    own.
    """
    return _ACTIVE.get()


@contextlib.contextmanager
def lowered_for(name: str) -> Iterator[None]:
    """Makes `platform` answer `name` while a function is traced, for programs without a mesh."""
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what the program that is being traced will run on.

    Layers that compute in another way on another platform ask here, not `jax.default_backend()`: a
    step is also compiled for devices that are not of this machine. In this order: `lowered_for`,
    the devices of the active mesh, the default devices of this process.
    """
    name, traced = _PLATFORM.get(), active()
    if name is None:
        name = traced[0].devices.flat[0].platform if traced else jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an activation by logical axis names; does nothing without an active mesh."""
    active = _ACTIVE.get()
    if active is None or active[0].size == 1:
        return x
    mesh, rules = active
    return jax.lax.with_sharding_constraint(x, resolve("activation", x.shape, axes, rules, mesh))


def batch_local(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Runs `fn(*batched, *replicated)` on each device's own rows of the batch.

    A loop over images must be local to a device: left to the partitioner, it would gather the
    batch. The result is called as `batch_local(fn)(*batched, replicated=(...))`; batched arrays and
    the result have the batch as first dimension, replicated ones are whole on every device (their
    gradients are summed over the batch axes).
    """

    def call(*batched: jax.Array, replicated: tuple[jax.Array, ...] = ()) -> jax.Array:
        active = _ACTIVE.get()
        if active is None or batch_parts(active[1], active[0]) == 1:
            return fn(*batched, *replicated)
        mesh, rules = active
        rows = P(_mesh_axes(rules["batch"]))
        in_specs = (rows,) * len(batched) + (P(),) * len(replicated)
        local = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=rows, check_vma=False)
        return local(*batched, *replicated)

    return call
