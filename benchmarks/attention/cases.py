"""What is measured of attention: a path, the program of it, its floors and goals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trainlib.model.weights import abstract


class Program(NamedTuple):
    """A function of arrays to be compiled, and the shapes of its arguments."""

    function: Callable[..., Any]
    shapes: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A path: forward and backward pass of one function or layer at one size.

    Attributes:
      path: its name, FAMILY/WHAT.
      what: sizes, in words.
      make: builds the program; it imports what it needs.
      floor: target -> milliseconds that no program of this form goes below, and how that was found
        stands beside the case.
      goal: milliseconds on v5e-1 that it is to reach; None without any.
      aim: milliseconds on v5e-1 that would be good.
      bytes_goal: what is moved through HBM, over the least, at most.
      least: bytes of inputs, results and cotangents without any padding, each moved once; None:
        the sizes of the program's own arguments and results are without padding.
    """

    path: str
    what: str
    make: Callable[[], Program]
    floor: Mapping[str, float]
    goal: float | None = None
    aim: float | None = None
    bytes_goal: float | None = None
    least: int | None = None


def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    """An argument of a program."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def size_of(tree: Any) -> int:
    """Bytes of all arrays of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def with_gradients(function: Callable[..., Any], *shapes: Any, fixed: tuple = ()) -> Program:
    """`function(*arguments, *fixed)` and the gradients of its arguments for a cotangent.

    Args:
      function: gives an array, or a tree of them.
      *shapes: of the arguments that are differentiated.
      fixed: shapes of those that are not.
    """

    def step(arguments: tuple, fixed: tuple, cotangent: Any) -> Any:
        value, pull = jax.vjp(lambda *a: function(*a, *fixed), *arguments)
        # As in a network, where the cotangent comes after the value.
        value, cotangent = jax.lax.optimization_barrier((value, cotangent))
        return value, pull(cotangent)

    return Program(step, (shapes, fixed, jax.eval_shape(function, *shapes, *fixed)))


def of_layer(layer: Any, x: jax.ShapeDtypeStruct) -> Program:
    """`layer(x)` of a layer of ours, with gradients of its float32 weights and of x."""
    spec = abstract(layer)
    weights = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in spec.params.items()}
    return with_gradients(lambda weights, x: spec.bind(weights, {})(x), weights, x)
