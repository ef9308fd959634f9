"""Equal modules with stacked weights, and the loop over them.

Letters: P periods, n modules of one kind in a period.

    x, reports = fold(x, lambda block, x, i: block(x), {"dense": (Stacked.of(module), numbers)})

is `for i, block in enumerate(blocks): x, report = block(x)` with the reports stacked, and with
`scan` the body is compiled once for all blocks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from trainlib.model.remat import recomputed
from trainlib.model.weights import Initializer, declare, declare_stat

M = TypeVar("M", bound=nnx.Module)
# (a module, what modules hand on, slices of further arrays) -> (handed on, report)
Step = Callable[..., tuple[Any, Any]]


@functools.cache
def _each(init: Initializer, depth: int) -> Initializer:
    """`init` for every member of a stack of `depth` leading dimensions, each with its own key."""

    def stacked_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        make = jax.vmap(lambda one: init(one, shape[depth:], dtype))
        return make(jax.random.split(key, math.prod(shape[:depth]))).reshape(shape)

    return stacked_init


def stack(
    module: M, sizes: tuple[int, ...], axes: tuple[str, ...], rngs: nnx.Rngs | None = None
) -> M:
    """Turns a freshly built module without arrays into a stack of such modules: each of its weights
    and statistics [...] becomes [*sizes, ...].

    Args:
      module: holds abstract weights only; changed in place. `fold` calls its members.
      sizes: the leading dimensions, for example (6, 3) for 6 periods of 3 layers.
      axes: their logical names.
      rngs: see `declare`; with them, each member's weights are drawn with keys of their own.
    """
    for name, value in list(vars(module).items()):
        if isinstance(value, nnx.Param | nnx.BatchStat):
            make = declare if isinstance(value, nnx.Param) else declare_stat
            struct, meta = value.get_value(), value.get_metadata()
            init = _each(meta["init"], len(sizes))
            shape, names = (*sizes, *struct.shape), (*axes, *meta["axes"])
            setattr(module, name, make(shape, names, init, rngs, dtype=struct.dtype))
        elif isinstance(value, nnx.Module):
            stack(value, sizes, axes, rngs)
    return module


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Members:
    """A stacked weight [*sizes, ..] as one array for each member; `member` reads both."""

    arrays: tuple[jax.Array, ...]
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, stacked: jax.Array, depth: int) -> Members:
        """The members of an array in the memory of this host, which are parts of it, not copies."""
        view = np.asarray(stacked)
        places = np.ndindex(*view.shape[:depth])
        parts = (jax.device_put(view[place], may_alias=True) for place in places)
        return cls(tuple(parts), view.shape[:depth])

    def __getitem__(self, index: tuple[int, ...]) -> jax.Array:
        return self.arrays[int(np.ravel_multi_index(index, self.sizes))]


def member(module: M, index: tuple[int, ...], whole: Callable[[tuple], bool] | None = None) -> M:
    """One of the modules that `stack` made one, with slices of its weights.

    Args:
      module: the stack.
      index: of the member, as long as the leading dimensions are many.
      whole: (path of a weight) -> whether it stays a stack; None: none does.
    """
    graphdef, weights = nnx.split(module)
    flat: dict[tuple, Any] = traverse_util.flatten_dict(nnx.to_pure_dict(weights))
    kept = whole or (lambda _: False)
    parts = {path: w if kept(path) else w[index] for path, w in flat.items()}
    return nnx.merge(graphdef, traverse_util.unflatten_dict(parts))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stacked:
    """The weights of equal modules, stacked: a pytree, so that a loop slices it as any array.

    Attributes:
      weights: nested dictionary, leaves [n, ...] (or [P, n, ...] before a loop over periods).
      graphdef: what all members have in common.
    """

    weights: Any
    graphdef: nnx.GraphDef = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, module: nnx.Module) -> Stacked:
        """The members of a module that `stack` built."""
        graphdef, weights = nnx.split(module)
        return cls(nnx.to_pure_dict(weights), graphdef)


def fold(
    x: Any,
    step: Step,
    pieces: Mapping[str, tuple[Any, ...]],
    *,
    single: Callable[[str], bool] = lambda _: False,
    scan: bool = True,
    remat: str = "none",
) -> tuple[Any, dict[str, Any]]:
    """Hands x through P equal periods, and in each of them through its kinds of modules in order.

    Args:
      x: what the modules hand on.
      step: `(module, x, *slices) -> (x, report)`.
      pieces: kind -> (its `Stacked`, further pytrees of which `step` gets a slice for each module).
        All leaves are [P, n, ...], of a kind that is `single` [P, ...].
      single: whether a kind has one module in each period.
      scan: run as loops that compile their body once; False writes one module after the other.
      remat: what each module keeps for its backward pass, see `trainlib.model.remat`.

    Returns:
      (x, kind -> reports, stacked as its weights are).
    """
    periods = len(jax.tree.leaves(dict(pieces))[0])
    body = recomputed(functools.partial(_call, step), remat, in_loop=scan and periods > 1)

    def period(x: Any, parts: dict[str, tuple[Any, ...]]) -> tuple[Any, dict[str, Any]]:
        reports = {}
        for kind in pieces:
            with jax.named_scope(kind):
                if single(kind):
                    x, reports[kind] = body(x, parts[kind])
                else:
                    x, reports[kind] = _loop(body, x, parts[kind], scan)
        return x, reports

    return _loop(period, x, dict(pieces), scan)


def _call(step: Step, x: Any, piece: tuple[Any, ...]) -> tuple[Any, Any]:
    """One module of a `Stacked` of which a loop has taken a slice."""
    stacked, *slices = piece
    return step(nnx.merge(stacked.graphdef, stacked.weights), x, *slices)


def _loop(body: Callable, x: Any, pieces: Any, scan: bool) -> tuple[Any, Any]:
    """`jax.lax.scan(body, x, pieces)`; unrolled in Python without `scan` or for a single turn."""
    length = len(jax.tree.leaves(pieces)[0])
    if scan and length > 1:
        return jax.lax.scan(body, x, pieces, length=length)
    reports = []
    for index in range(length):
        x, report = body(x, jax.tree.map(lambda leaf, i=index: leaf[i], pieces))
        reports.append(report)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *reports)
