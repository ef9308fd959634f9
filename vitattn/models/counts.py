"""Parameters and FLOPs of a model without its arrays.

One multiply-add is 2 FLOPs, and taps on the zeros around a map count, as in both attention papers.
FLOPs are XLA's own count of the program for one image, with two corrections: XLA counts the body of
a loop once, whatever its length, and leaves out a convolution's taps on padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from trainlib.nn import Abstract


def params_by_part(abstract: Abstract) -> dict[str, int]:
    """Parameters of each top-level part, in the order of the model: stem, conv2_x, .., head."""
    parts = Counter()
    for name, spec in abstract.params.items():
        parts[name.split(".", 1)[0]] += spec.size
    order = ["stem", *sorted(part for part in parts if part not in ("stem", "head")), "head"]
    return {part: parts[part] for part in order if part in parts}


def _subjaxprs(value) -> Iterator[core.ClosedJaxpr]:
    """The programs among the parameters of one operation."""
    if isinstance(value, core.ClosedJaxpr):
        yield value
    elif isinstance(value, core.Jaxpr):
        yield core.ClosedJaxpr(value, ())
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _subjaxprs(item)


def _equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Every operation of a program, those of called programs too, but not the bodies of loops."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "scan":
            for value in equation.params.values():
                for inner in _subjaxprs(value):
                    yield from _equations(inner.jaxpr)


def _padding_flops(equation: core.JaxprEqn) -> int:
    """FLOPs of a forward convolution on the zeros around its map, which XLA leaves out."""
    lhs, rhs = (operand.aval.shape for operand in equation.invars)
    out, parameters = equation.outvars[0].aval.shape, equation.params
    numbers = parameters["dimension_numbers"]
    taps = inside = 1
    for axis, (low, _) in enumerate(parameters["padding"]):
        size, kernel = lhs[numbers.lhs_spec[2 + axis]], rhs[numbers.rhs_spec[2 + axis]]
        first = np.arange(out[numbers.out_spec[2 + axis]]) * parameters["window_strides"][axis]
        at = first[:, None] + np.arange(kernel) * parameters["rhs_dilation"][axis] - low
        taps *= at.size
        inside *= np.count_nonzero((at >= 0) & (at < size))
    rest = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]]
    return 2 * rest * (taps - inside)


def _xla_flops(program: core.ClosedJaxpr) -> float:
    analysis = jax.jit(core.jaxpr_as_fun(program)).lower(*program.in_avals).cost_analysis()
    return (analysis or {}).get("flops", 0.0)


def program_flops(program: core.ClosedJaxpr) -> float:
    """FLOPs of a forward program: XLA's count, loops as often as they run, and padding."""
    total = _xla_flops(program)
    for equation in _equations(program.jaxpr):
        if equation.primitive.name == "scan":
            body = equation.params["jaxpr"]
            total += equation.params["length"] * program_flops(body) - _xla_flops(body)
        elif equation.primitive.name == "conv_general_dilated":
            total += _padding_flops(equation)
    return total


def flops(fn: Callable, *arguments) -> float:
    """FLOPs of `fn(*arguments)`; arguments may be `ShapeDtypeStruct`s, so no memory is needed."""
    return program_flops(jax.make_jaxpr(fn)(*arguments))


def forward_flops(abstract: Abstract, image_size: tuple[int, int]) -> float:
    """FLOPs of classifying one image [H, W, 3] with running statistics."""

    def forward(params, model_state, images):
        return abstract.bind(params, model_state)(images, train=False)

    def structs(specs):
        return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in specs.items()}

    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    return flops(forward, structs(abstract.params), structs(abstract.model_state), images)
