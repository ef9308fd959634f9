"""What the compiler is told of programs for several devices, here and in training alike."""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import Mesh

from trainlib.chips import reaches_all

# All-to-alls that begin, and end when what they bring is needed. Left to itself (libtpu 0.0.42) the
# compiler makes every other collective asynchronous and lets the core wait for these.
TPU: Mapping[str, bool] = {"xla_tpu_enable_async_all_to_all": True}


def options(mesh: Mesh) -> dict[str, bool] | None:
    """The `compiler_options` of `jax.jit` for a program on a mesh; None where there are none.

    Example:
      >>> step = jax.jit(step, compiler_options=trainlib.sharding.compiler.options(mesh))
    """
    device = mesh.devices.flat[0]
    if mesh.size == 1 or device.platform != "tpu" or not reaches_all(device.device_kind, mesh.size):
        return None
    # With columns as well, some programs make this compiler abort, and nothing is gained there.
    return dict(TPU) if mesh.shape.get("model", 1) == 1 else None
