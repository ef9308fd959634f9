"""FLOPs of instructions of an optimised HLO, as XLA's own cost analysis counts them.

A multiply-add counts two. Of a convolution only the taps that fall on elements count, neither those
on padding nor those between dilated elements, which is also how a batched matrix product that XLA
writes as a convolution comes out right. An elementwise operation counts one an element, and
transcendental functions none, as they are no FLOPs to XLA either.
"""

from __future__ import annotations

import functools
import math
import re

from trainlib.planning.hlo import Instruction, Program
from trainlib.planning.hlo.layout import Array

_TRANSCENDENTAL = {
    *("cbrt", "cosine", "erf", "exponential", "exponential-minus-one", "log", "log-plus-one"),
    *("logistic", "power", "rsqrt", "sine", "sqrt", "tan", "tanh", "atan2"),
}
_ELEMENTWISE = {
    *("abs", "add", "and", "ceil", "clamp", "clz", "compare", "complex", "convert", "divide"),
    *("floor", "imag", "is-finite", "maximum", "minimum", "multiply", "negate", "not", "or"),
    *("popcnt", "real", "reduce-precision", "remainder", "round-nearest-afz"),
    *("round-nearest-even", "select", "shift-left", "shift-right-arithmetic"),
    *("shift-right-logical", "sign", "stochastic-convert", "subtract", "xor"),
}
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_CONTRACTING = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_GROUPS = {name: re.compile(rf"\b{name}_group_count=(\d+)") for name in ("feature", "batch")}


class Arithmetic:
    """Counts the FLOPs of a program's instructions; what is fused is counted once and kept."""

    def __init__(self, program: Program):
        self._program = program
        self._bodies: dict[str, float] = {}
        self._narrow: dict[str, str] = {}

    def flops(self, line: Instruction, computation: str) -> float:
        """Of one run of an instruction, with all that is fused into it."""
        opcode = line.opcode
        if opcode in _ELEMENTWISE:
            return float(sum(array.elements for array in line.arrays[:1]))
        if opcode in ("fusion", "call", "map"):
            each = sum(self._body(called) for called in line.called)
            return each * (line.arrays[0].elements if opcode == "map" else 1)
        if opcode in ("convolution", "dot"):
            left, right = (self._result(name, computation) for name in line.operands[:2])
            if left is None or right is None or not line.arrays:
                return 0.0
            count = _convolution if opcode == "convolution" else _dot
            return count(line.arrays[0], left, right, line.rest)
        if opcode in ("reduce", "reduce-window", "select-and-scatter"):
            return self._reduction(line, computation)
        if opcode == "scatter" and len(line.operands) == 3:
            return self._scatter(line, computation)
        if opcode == "sort":
            elements = line.arrays[0].elements
            return float(elements * max(1, elements - 1).bit_length())
        return 0.0

    def narrow(self, line: Instruction, computation: str) -> str:
        """Of which numbers of 8 bits or fewer an instruction, or what is fused into it, makes
        products, "int8" or "fp8"; "" where of none.
        """
        if line.opcode in ("convolution", "dot"):
            sides = {_family(self._result(name, computation)) for name in line.operands[:2]}
            return sides.pop() if len(sides) == 1 else ""
        if line.opcode not in ("fusion", "call"):
            return ""
        for name in line.called:
            if name not in self._narrow:
                parts = self._program.computations.get(name, ())
                found = (self.narrow(part, name) for part in parts)
                self._narrow[name] = next(filter(None, found), "")
        return next(filter(None, (self._narrow[name] for name in line.called)), "")

    def _body(self, name: str) -> float:
        if name not in self._bodies:
            lines = self._program.computations.get(name, ())
            self._bodies[name] = sum(self.flops(line, name) for line in lines)
        return self._bodies[name]

    def _result(self, name: str, computation: str) -> Array | None:
        line = self._program.by_name[computation].get(name)
        return line.arrays[0] if line and line.arrays else None

    def _reduction(self, line: Instruction, computation: str) -> float:
        each = sum(self._body(called) for called in line.called)
        source = self._result(line.operands[0], computation) if line.operands else None
        if source is None or not line.arrays:
            return 0.0
        if line.opcode == "reduce":
            return each * (source.elements - line.arrays[0].elements)
        size, *_ = _window(line.rest, len(source.shape))
        taps = math.prod(size)
        if line.opcode == "reduce-window":
            return each * line.arrays[0].elements * (taps - 1)
        # Every element of the second operand selects among a window, and is added once.
        second = self._result(line.operands[1], computation)
        select, scatter = (self._body(called) for called in line.called[:2])
        return (select * (taps - 1) + scatter) * second.elements if second else 0.0

    def _scatter(self, line: Instruction, computation: str) -> float:
        updates = self._result(line.operands[2], computation)
        return sum(map(self._body, line.called)) * updates.elements if updates else 0.0


def _family(array: Array | None) -> str:
    kind = array.kind if array else ""
    if kind.startswith("f8"):
        return "fp8"
    return "int8" if kind in ("s8", "u8", "s4", "u4", "s2", "u2") else ""


def _dot(result: Array, left: Array, right: Array, rest: str) -> float:
    found = _CONTRACTING.search(rest)
    depth = 1
    for axis in found[1].split(",") if found and found[1] else ():
        depth *= left.shape[int(axis)]
    return 2.0 * result.elements * depth


def _convolution(result: Array, left: Array, right: Array, rest: str) -> float:
    labels = _LABELS.search(rest)
    if not labels:
        return 0.0
    left_at, right_at, out_at = labels[1], labels[2], labels[3]
    spatial = sorted(label for label in out_at if label.isdigit())
    groups = {name: int(m[1]) if (m := p.search(rest)) else 1 for name, p in _GROUPS.items()}
    taps = 1
    for index, window in enumerate(zip(*_window(rest, len(spatial)), strict=True)):
        size, *steps = window
        axis = spatial[index]
        taps *= _valid_taps(
            left.shape[left_at.index(axis)], size, result.shape[out_at.index(axis)], *steps
        )
    batch = left.shape[left_at.index("b")] // groups["batch"]
    features = right.shape[right_at.index("i")] * right.shape[right_at.index("o")]
    return 2.0 * batch * features * taps


@functools.lru_cache(maxsize=2**12)
def _valid_taps(
    inputs: int, size: int, outputs: int, stride: int, low: int, base: int, dilation: int
) -> int:
    """Pairs of an output and a tap that fall on an element, along one axis.

    Args:
      inputs: elements, before dilation.
      size: taps of the window.
      outputs: of the result.
      stride: of the window.
      low: padding before the first element.
      base: distance of elements, 1 where they are not dilated.
      dilation: distance of taps.
    """
    reach = (inputs - 1) * base
    total = 0
    for tap in range(size):
        first = tap * dilation - low
        if base == 1 or stride % base == 0:
            # All outputs stand alike towards the dilated elements.
            if first % base:
                continue
            least = max(0, -(first // stride) if first < 0 else 0)
            while least * stride + first < 0:
                least += 1
            most = min(outputs - 1, (reach - first) // stride)
            total += max(0, most - least + 1)
        else:
            total += sum(
                0 <= (at := out * stride + first) <= reach and at % base == 0
                for out in range(outputs)
            )
    return total


def _window(rest: str, axes: int) -> tuple[list[int], ...]:
    """(size, stride, low padding, base dilation, window dilation), each by axis."""
    found = _WINDOW.search(rest)
    fields = dict(f.split("=", 1) for f in found[1].split()) if found and found[1] else {}

    def numbers(name: str, default: int) -> list[int]:
        if name not in fields:
            return [default] * axes
        return [int(part.split("_")[0]) for part in fields[name].split("x")]

    return (
        numbers("size", 1),
        numbers("stride", 1),
        numbers("pad", 0),
        numbers("lhs_dilate", 1),
        numbers("rhs_dilate", 1),
    )
