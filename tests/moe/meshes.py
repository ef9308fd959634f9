"""Runs the step of a sparse layer on one device or on a mesh of simulated ones."""

from __future__ import annotations

import jax
import numpy as np

from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve_specs

RULES = {
    **{"batch": ("replica", "data", "model"), "expert": "data", "expert_embed": None},
    **{"expert_mlp": "model", "router": None},
}
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def run(step, spec, params, x, *more, shape=None, rules=RULES):
    """What `step(params, x, *more)` gives, as NumPy arrays.

    Args:
      step: a function of JAX.
      spec: the abstract layer, whose weights say how they are split.
      params: the weights.
      x: [B, ..], split as a batch is.
      *more: what every device has whole.
      shape: (replica, data, model), the first devices in their order; None: one device, no mesh.
      rules: logical axis -> axes of the mesh.
    """
    if shape is None:
        return jax.device_get(jax.jit(step, compiler_options=QUICK)(params, x, *more))
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    params = jax.device_put(params, resolve_specs(spec.params, rules, mesh))
    x = jax.device_put(x, batch_sharding(rules, mesh))

    def on_mesh(*arrays):
        with activate(mesh, rules):
            return step(*arrays)

    return jax.device_get(jax.jit(on_mesh, compiler_options=QUICK)(params, x, *more))


def close(got, want, tolerance=2e-5):
    """Every output, gradient and metric, relative to the largest element of its array."""

    def check(path, a, b):
        a, b = np.float32(a), np.float32(b)
        limit = tolerance * max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, got, want)
