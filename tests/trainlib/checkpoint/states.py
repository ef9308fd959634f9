"""Small real train states for the tests of checkpoints, and a user without rights."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainlib.model.weights import Abstract, Spec
from trainlib.step import train_state as state

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


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Acts without the rights of root, which ignores modes, and can still reach `folder`."""
    root = os.geteuid() == 0
    closed = [p for p in folder.parents if root and p.stat().st_mode & 0o055 != 0o055]
    modes = {path: path.stat().st_mode for path in closed}
    for path in closed:
        path.chmod(modes[path] | 0o055)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in closed:
            path.chmod(modes[path])
