"""Modules whose calls have names in the compiled program.

A layer is named by the attribute of the module that calls it: what `self.conv1(x)` of the second
block of `model.conv2_x` computes is `conv2_x/1/conv1/...` in the HLO, in profiles of a device and
in the ledger (`trainlib.planning.ledger`), and its backward pass is
`transpose(jvp(conv2_x))/1/conv1/...`. Names are metadata: numbers, weights and the cache of
compiled programs know nothing of them.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from flax import nnx

F = TypeVar("F", bound=Callable[..., Any])

_calling = contextvars.ContextVar[nnx.Module | None]("calling", default=None)


class Layer(nnx.Module):
    """A Flax module that names its calls; it is used, split and merged as any other."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if call := cls.__dict__.get("__call__"):
            cls.__call__ = named(call)


def named(call: F) -> F:
    """Decorates a method of a layer that runs it, as `__call__` does: what it computes is in the
    scope of the layer's name, and the layers that it calls have names as well.
    """

    @functools.wraps(call)
    def scoped(self: nnx.Module, *args: Any, **options: Any) -> Any:
        name = name_in(_calling.get(), self)
        token = _calling.set(self)
        try:
            if not name:
                return call(self, *args, **options)
            with jax.named_scope(name):
                return call(self, *args, **options)
        finally:
            _calling.reset(token)

    return cast(F, scoped)


def name_in(parent: nnx.Module | None, layer: nnx.Module) -> str:
    """`conv1` or, in a list, `conv2_x/1`: the attribute of `parent` that is this layer.

    It is looked up because Flax makes modules anew from their weights, past any `__init__`. "" for
    a layer that no other calls, or that is no attribute of the caller.
    """
    if parent is None or parent is layer:
        return ""
    for name, value in vars(parent).items():
        if value is layer:
            return name
        if isinstance(value, nnx.List | list):
            for index, entry in enumerate(value):
                if entry is layer:
                    return f"{name}/{index}"
    return ""
