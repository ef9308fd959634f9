"""What a layer asks while it is traced: the mesh, the platform, constraints on activations.

Whether there is a mesh, and which, JAX's own ambient mesh says. So a layer of ours is also sharded
in a user's jitted function under `jax.set_mesh(mesh)`. Beside it stand our rules, logical axis ->
mesh axis.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from trainlib.sharding.mesh import AnyMesh
from trainlib.sharding.rules import Rules, batch_parts, default_rules, mesh_axes, resolve

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

# A step sets the ambient mesh from inside the function that is traced, where `jax.set_mesh` is
# refused and only an abstract mesh can be set (JAX 0.10.2): axes and platform, no devices. The mesh
# with its devices is kept beside it, for a constraint on an abstract mesh does not say where a
# program runs: one whose arguments lie on no mesh would run on a single device, all constraints
# ignored. Programs for a topology that is only described get their devices from it as well.
_ACTIVE: contextvars.ContextVar[tuple[AnyMesh, Rules] | None] = contextvars.ContextVar(
    "active", default=None
)
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def _abstract(mesh: AnyMesh) -> AbstractMesh:
    return mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh


@contextlib.contextmanager
def activate(mesh: AnyMesh, rules: Rules) -> Iterator[None]:
    """Makes `mesh` the ambient mesh of JAX while a function is traced, with these rules."""
    token = _ACTIVE.set((mesh, rules))
    try:
        with jax.sharding.use_abstract_mesh(_abstract(mesh)):
            yield
    finally:
        _ACTIVE.reset(token)


def active() -> tuple[AnyMesh, Rules] | None:
    """The ambient mesh and its rules; None without a mesh and inside a `shard_map`.

    Where nobody gave rules, as under `jax.set_mesh` in a user's own function, those of
    `default_rules` hold, and a mesh whose axes have other names than ours is left alone.
    """
    ambient, ours = jax.sharding.get_abstract_mesh(), _ACTIVE.get()
    # In a shard_map the axes are manual, and axes with explicit types bring their own shardings.
    if ambient.empty or any(kind != AxisType.Auto for kind in ambient.axis_types):
        return None
    if ours is not None and _abstract(ours[0]) == ambient:
        return ours
    rules = default_rules(ambient)
    return (_concrete(ambient), rules) if rules else None


def _concrete(ambient: AbstractMesh) -> AnyMesh:
    """The mesh with its devices, which a layer that runs outside of `jax.jit` needs."""
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:  # inside of jax.jit, which knows the devices
        return ambient
    return mesh if _abstract(mesh) == ambient else ambient


def automatic_axes(outputs: Callable[[P], Any]) -> Callable[[F], F]:
    """Decorates the `__call__` of a module so that it also runs on a user's mesh whose axes have
    explicit types, as those of `jax.make_mesh` have by default: inside they are automatic, and the
    module is partitioned as on any other mesh.

    Args:
      outputs: the partition of the first dimension of the inputs -> that of the result, a prefix
        of its tree.
    """

    def decorate(call: F) -> F:
        @functools.wraps(call)
        def wrapped(module: nnx.Module, *args: Any, **options: Any) -> Any:
            if not _explicit():
                return call(module, *args, **options)
            graphdef, state = nnx.split(module)
            leaves, tree = jax.tree.flatten((args, options))
            # Switches such as `train` stay what they are; arrays become arguments.
            arrays = {
                n: jnp.asarray(leaf) for n, leaf in enumerate(leaves) if hasattr(leaf, "shape")
            }

            def inner(state: nnx.State, arrays: dict[int, jax.Array]) -> Any:
                inputs, named = tree.unflatten([arrays.get(n, x) for n, x in enumerate(leaves)])
                return call(nnx.merge(graphdef, state), *inputs, **named)

            return with_automatic_axes(inner, outputs, state, arrays)

        return cast(F, wrapped)

    return decorate


def with_automatic_axes(
    function: Callable[[Any, Any], Any], outputs: Callable[[P], Any], weights: Any, inputs: Any
) -> Any:
    """The same for a pure function of weights and inputs, trees of arrays, which is called."""
    if not _explicit():
        return function(weights, inputs)
    # Of the inputs, and not of a key of random numbers or a scalar among them.
    widest = max(jax.tree.leaves(inputs), key=lambda array: array.ndim)
    batch = P(*jax.typeof(widest).sharding.spec[:1])
    run: Any = jax.sharding.auto_axes(function, out_sharding=outputs(batch))
    return run(weights, inputs)


def _explicit() -> bool:
    """Whether the ambient mesh is one of a user, with axes of explicit types."""
    mesh = jax.sharding.get_abstract_mesh()
    return AxisType.Explicit in mesh.axis_types and bool(default_rules(mesh))


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
    the devices of the ambient mesh, the default devices of this process.
    """
    name, device = _PLATFORM.get(), jax.sharding.get_abstract_mesh().abstract_device
    if name is None:
        name = device.platform if device else jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def device_kind() -> str:
    """What JAX calls the devices that the program being traced will run on (`Device.device_kind`);
    "" where only a platform was named, by `lowered_for`.
    """
    if _PLATFORM.get() is not None:
        return ""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an activation by logical axis names; does nothing without an ambient mesh."""
    ambient = active()
    if ambient is None or ambient[0].size == 1:
        return x
    mesh, rules = ambient
    return jax.lax.with_sharding_constraint(x, resolve("activation", x.shape, axes, rules, mesh))


def batch_local(fn: Callable[..., T]) -> Callable[..., T]:
    """Runs `fn(*batched, *replicated)` on each device's own part of the batch.

    A loop over images must be local to a device: left to the partitioner, it would gather the
    batch. The result is called as `batch_local(fn)(*batched, replicated=(...))`; batched arrays and
    the result, an array or a tree of them, have the batch as first dimension, replicated ones are
    whole on every device (their gradients are summed over the batch axes).
    """

    def call(*batched: jax.Array, replicated: tuple[jax.Array, ...] = ()) -> T:
        ambient = active()
        if ambient is None or batch_parts(ambient[1], ambient[0]) == 1:
            return fn(*batched, *replicated)
        mesh, rules = ambient
        batch = P(mesh_axes(rules["batch"]))
        in_specs = (batch,) * len(batched) + (P(),) * len(replicated)
        local = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=batch, check_vma=False)
        return local(*batched, *replicated)

    return call


def batch_is_local() -> bool:
    """Whether a function in `batch_local` is given arrays of a single device.

    It is not on a mesh of several devices over which no rule splits the batch, such as one whose
    axes have names that we do not know. Its arrays are the partitioner's there, which has no way to
    split a kernel: the plain form is to be taken.
    """
    ambient = jax.sharding.get_abstract_mesh()
    sizes = zip(ambient.axis_types, ambient.axis_sizes, strict=True) if not ambient.empty else ()
    if all(kind == AxisType.Manual or size == 1 for kind, size in sizes):
        return True
    known = active()
    return known is not None and batch_parts(known[1], known[0]) > 1
