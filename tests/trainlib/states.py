"""Small real train states for the tests of checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainlib import state
from trainlib.nn import Abstract, Spec

RULES = {"conv_in": "data", "conv_out": "model", "channels": None}
META = {"config": {"seed": 1}, "data": {"next_batch": 3}}


def weights(width: int = 16) -> Abstract:
    def spec(shape, axes):
        return Spec(shape, jnp.dtype("float32"), axes, jax.nn.initializers.normal(1.0))

    params = {
        "stem.0.kernel": spec((width, 6), ("conv_in", "conv_out")),
        "norm.scale": spec((6,), ("channels",)),
    }
    return Abstract(None, params, {"norm.mean": spec((6,), ("channels",))})


def _parts(mesh, width: int):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    shardings = state.state_shardings(weights(width), optimizer, mesh, RULES, with_ema=True)
    return weights(width), optimizer, shardings


def shapes(mesh, width: int = 16):
    """The state as shapes with shardings."""
    return state.abstract_state(*_parts(mesh, width))


def make(mesh, width: int = 16, seed: int = 4):
    """A state with moments and moving averages, and the same as `shapes`."""
    model, optimizer, shardings = _parts(mesh, width)
    return state.create(model, optimizer, jax.random.key(seed), shardings), shapes(mesh, width)


def equal(a, b) -> bool:
    """Whether all leaves are equal, bit for bit."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)
