"""FLOPs of a traced program, without its arrays.

Counted as papers count them: 2 for each multiply-add of a convolution or a matrix product, taps on
the zeros around a map among them; normalisation, activations and pooling are free. They come from
the traced program, so they are what runs, recomputation included. XLA's own count agrees on each
product, but it counts the body of a loop once whatever its length, and leaves out taps on padding.
A Pallas kernel counts as often as its grid has steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def subjaxprs(value) -> Iterator[core.Jaxpr]:
    """The programs among the parameters of one operation."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from subjaxprs(item)


def _product(equation: core.JaxprEqn) -> int:
    """Multiply-adds of one operation; 0 for all but convolutions and matrix products."""
    name, parameters = equation.primitive.name, equation.params
    if name not in ("dot_general", "conv_general_dilated"):
        return 0
    values: list[Any] = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    lhs, rhs, result = (value.shape for value in values)
    out = math.prod(result)
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return out * math.prod(lhs[axis] for axis in contracted)
    features = rhs[parameters["dimension_numbers"].rhs_spec[0]]
    return out * math.prod(rhs) // features


def _repeats(equation: core.JaxprEqn) -> int:
    """How often the body of an operation runs, over all devices together."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "shard_map":  # its body has the shapes of one device
        return math.prod(equation.params["mesh"].shape.values())
    if equation.primitive.name == "pallas_call":  # a grid of unknown size counts once
        return math.prod(n for n in equation.params["grid_mapping"].grid if isinstance(n, int))
    return 1


def multiply_adds(jaxpr: core.Jaxpr) -> int:
    """Multiply-adds of a program, the body of a loop as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [body for value in equation.params.values() for body in subjaxprs(value)]
        counts = [multiply_adds(body) for body in inner]
        # Of the branches of a conditional one runs: the longest is counted.
        work = max(counts, default=0) if equation.primitive.name == "cond" else sum(counts)
        total += _product(equation) + _repeats(equation) * work
    return total


def flops(fn: Callable, *arguments) -> int:
    """FLOPs of `fn(*arguments)`; arguments may be `ShapeDtypeStruct`s, so no memory is needed."""
    return 2 * multiply_adds(jax.make_jaxpr(fn)(*arguments).jaxpr)
