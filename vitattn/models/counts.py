"""Parameters and FLOPs of a model without its arrays.

FLOPs are counted as both attention papers count them: 2 for each multiply-add of a convolution or a
matrix product, taps on the zeros around a map among them; normalisation, activations and pooling
are free. They come from the traced program, so they are what runs. XLA's own count agrees on each
product, but it counts the body of a loop once whatever its length, and leaves out taps on padding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.extend import core

from trainlib.nn import Abstract


def params_by_part(abstract: Abstract) -> dict[str, int]:
    """Parameters of each top-level part, in the order of the model: stem, conv2_x, .., head."""
    parts = Counter()
    for name, spec in abstract.params.items():
        parts[name.split(".", 1)[0]] += spec.size
    order = ["stem", *sorted(part for part in parts if part not in ("stem", "head")), "head"]
    return {part: parts[part] for part in order if part in parts}


def _subjaxprs(value) -> Iterator[core.Jaxpr]:
    """The programs among the parameters of one operation."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _subjaxprs(item)


def _product(equation: core.JaxprEqn) -> int:
    """Multiply-adds of one operation; 0 for all but convolutions and matrix products."""
    name, parameters = equation.primitive.name, equation.params
    if name not in ("dot_general", "conv_general_dilated"):
        return 0
    lhs, rhs = (operand.aval.shape for operand in equation.invars)
    out = math.prod(equation.outvars[0].aval.shape)
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return out * math.prod(lhs[axis] for axis in contracted)
    features = rhs[parameters["dimension_numbers"].rhs_spec[0]]
    return out * math.prod(rhs) // features


def multiply_adds(jaxpr: core.Jaxpr) -> int:
    """Multiply-adds of a program, the body of a loop as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = [body for value in equation.params.values() for body in _subjaxprs(value)]
        total += _product(equation) + times * sum(multiply_adds(body) for body in inner)
    return total


def flops(fn: Callable, *arguments) -> int:
    """FLOPs of `fn(*arguments)`; arguments may be `ShapeDtypeStruct`s, so no memory is needed."""
    return 2 * multiply_adds(jax.make_jaxpr(fn)(*arguments).jaxpr)


def forward_flops(abstract: Abstract, image_size: tuple[int, int]) -> int:
    """FLOPs of classifying one image [H, W, 3] with running statistics."""

    def forward(params, model_state, images):
        return abstract.bind(params, model_state)(images, train=False)

    def structs(specs):
        return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in specs.items()}

    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    return flops(forward, structs(abstract.params), structs(abstract.model_state), images)
