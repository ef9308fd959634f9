"""What the compiler is told of programs for several devices, here and in training alike."""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import Mesh

# All-to-alls that begin, and end when what they bring is needed. Left to itself (libtpu 0.0.42) the
# compiler makes every other collective asynchronous and lets the core wait for these.
TPU: Mapping[str, bool] = {"xla_tpu_enable_async_all_to_all": True}


def options(mesh: Mesh) -> dict[str, bool] | None:
    """The `compiler_options` of `jax.jit` for a program on a mesh; None where there are none.

    Example:
      >>> step = jax.jit(step, compiler_options=trainlib.sharding.compiler.options(mesh))
    """
    several = mesh.size > 1 and mesh.devices.flat[0].platform == "tpu"
    # With columns as well, some programs make this compiler abort, and nothing is gained there.
    return dict(TPU) if several and mesh.shape.get("model", 1) == 1 else None
