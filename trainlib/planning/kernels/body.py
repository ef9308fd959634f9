"""What the body of a Pallas kernel computes over all steps of its grid: products, loops, branches.

Conditions and bounds of loops that follow from the step are evaluated at every step.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np

from trainlib.planning.kernels.mosaic import Module, Scalars, Unknown, name_of, shape_of

_PRODUCTS = ("tpu.matmul", "vector.contract")
_COPIES = ("tpu.enqueue_dma", "tpu.enqueue_indirect_dma", "tpu.enqueue_dma_local")
# Products of the matrix unit that one of float32 takes at full precision (XLA's HIGHEST).
_FULL_PRECISION = 6


@dataclasses.dataclass
class _Share:
    """How often what lies in a loop or a branch runs, for each run of what it lies in."""

    outer: float = 0.0
    inner: float = 0.0
    known: bool = True

    @property
    def value(self) -> float | None:
        return self.inner / self.outer if self.known and self.outer else None


class Body:
    """Adds up products, chunk of steps by chunk.

    Args:
      module: of the kernel.
      grid: its sizes.
      load: value of a prefetched scalar: (operand, its index) -> values.

    Attributes:
      flops: of matrix products, multiply-adds count two.
      passes: `flops` as the matrix unit sees them: 6 times for float32 at full precision.
      notes: what was assumed or left out, a sentence each.
    """

    def __init__(self, module: Module, grid: tuple[int, ...], load: Any):
        self._module, self._grid, self._load = module, grid, load
        self.flops, self.passes = 0.0, 0.0
        self.notes: dict[str, None] = {}
        self._loops: dict[int, _Share] = {}
        self._branches: dict[int, _Share] = {}
        if any(name_of(operation) in _COPIES for operation in module.walk()):
            self.notes["Copies that the kernel makes itself are not counted."] = None

    @property
    def loops(self) -> tuple[float | None, ...]:
        """Turns of each loop, in order, None where they are not known. Those that never turn are
        left out, as the compiler does: JAX writes a loop of unknown length as one and a rest.
        """
        return tuple(s.value for s in self._loops.values() if s.inner or not s.known)

    @property
    def branches(self) -> tuple[float | None, ...]:
        """How often each block under a condition runs, in order, of once; None if not known. Those
        in loops that never turn are left out.
        """
        return tuple(share.value for share in self._branches.values() if share.outer)

    def add(self, at: tuple[np.ndarray, ...]) -> None:
        """Adds the steps with these coordinates."""
        arguments = dict(zip(self._module.body.arguments, at, strict=False))
        self._loop_number = self._branch_number = 0
        scalars = Scalars(arguments, self._load, self._grid)
        flops, passes = self._block(
            self._module.body, scalars, np.ones(len(at[0]) if at else 1), certain=True
        )
        self.flops += flops
        self.passes += passes

    def _block(
        self, block: Any, scalars: Scalars, runs: np.ndarray, *, certain: bool
    ) -> tuple[float, float]:
        """(flops, passes) of a block that runs so often in each step."""
        flops = passes = 0.0
        for operation in block.operations:
            name = name_of(operation)
            parts: list[tuple[float, float]] = []
            if name in _PRODUCTS:
                one, weight = _product(operation)
                parts = [(one * float(runs.sum()), weight * one * float(runs.sum()))]
                if not certain:
                    self.notes["Products under a condition are counted as if it held."] = None
            elif name == "scf.if":
                parts = self._conditional(operation, scalars, runs, certain=certain)
            elif len(operation.regions):
                if name == "scf.for":
                    inside = runs * self._turns(operation, scalars, runs)
                else:
                    inside = runs
                    if name == "scf.while":
                        self.notes["A loop without a bound is counted once."] = None
                blocks = [inner for region in operation.regions for inner in region.blocks]
                parts = [self._block(b, scalars, inside, certain=certain) for b in blocks]
            flops += sum(part[0] for part in parts)
            passes += sum(part[1] for part in parts)
        return flops, passes

    def _conditional(
        self, operation: Any, scalars: Scalars, runs: np.ndarray, *, certain: bool
    ) -> list[tuple[float, float]]:
        blocks = [inner for region in operation.regions for inner in region.blocks]
        try:
            taken = scalars.value(operation.operands[0]).astype(bool)
        except Unknown:
            taken = None
        parts = []
        for number, block in enumerate(blocks):
            if len(list(block.operations)) < 2:  # nothing but its end
                continue
            share = self._branches.setdefault(self._branch_number, _Share())
            self._branch_number += 1
            inside = runs if taken is None else runs * (taken if number == 0 else ~taken)
            share.known &= taken is not None
            share.outer += float(runs.sum())
            share.inner += float(inside.sum())
            sure = certain and taken is not None
            parts.append(self._block(block, scalars, inside, certain=sure))
        # Of two branches only one is taken.
        return [max(parts)] if taken is None and parts else parts

    def _turns(self, operation: Any, scalars: Scalars, runs: np.ndarray) -> np.ndarray:
        share = self._loops.setdefault(self._loop_number, _Share())
        self._loop_number += 1
        try:
            low, high, step = (scalars.value(v) for v in list(operation.operands)[:3])
        except Unknown:
            self.notes["A loop without a constant bound is counted once."] = None
            share.known = False
            return np.ones(())
        turns = np.maximum(-(-(high - low) // step), 0)
        share.outer += float(runs.sum())
        share.inner += float((runs * turns).sum())
        return turns


def _product(operation: Any) -> tuple[float, float]:
    """(FLOPs of one product, how often the matrix unit does it)."""
    left, kind = shape_of(operation.operands[0].type)
    result, _ = shape_of(operation.results[0].type)
    attributes = operation.attributes
    contracted = [len(left) - 1]
    if "dimension_numbers" in attributes:
        first = re.search(r"<\[([\d, ]*)\]", str(attributes["dimension_numbers"]))
        contracted = [int(n) for n in re.findall(r"\d+", first[1])] if first else contracted
    full = "precision" in attributes and "fp32" in str(attributes["precision"]) and kind == "f32"
    flops = 2.0 * math.prod(result) * math.prod(left[axis] for axis in contracted)
    return flops, _FULL_PRECISION if full else 1.0
