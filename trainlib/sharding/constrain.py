"""What a layer asks while it is traced: the mesh, the platform, constraints on activations."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trainlib.sharding.rules import Rules, batch_parts, mesh_axes, resolve

_ACTIVE: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar(
    "mesh", default=None
)
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


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
        rows = P(mesh_axes(rules["batch"]))
        in_specs = (rows,) * len(batched) + (P(),) * len(replicated)
        local = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=rows, check_vma=False)
        return local(*batched, *replicated)

    return call
