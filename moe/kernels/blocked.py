"""Experts on segments of sorted tokens, without padding to a capacity, on any backend.

Letters: E experts, R slots of the buffer of tokens, D model width, F hidden width.

XLA has no matrix product with a number of rows known at run time only. So each expert's segment is
cut into blocks of a few sizes, largest first, and each size is a loop with as many turns as are
needed. On a CPU every block packs the expert's weights anew, so that a block more costs as much as
some rows more: the last block may then reach beyond its segment. What it leaves there the next
expert overwrites, and gradients of weights leave out what it read there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moe.kernels.batched import Weights, hidden
from trainlib.model.remat import PRODUCT, keep
from trainlib.sharding.constrain import platform

ALIGN = 32
_SIZES = (1024, 512, 256, 128, 64, 32)  # slots of a block; all multiples of ALIGN
_BEYOND = 64  # slots that the last block may reach beyond its segment, at the most
_UNIT = 16  # slots, of which the sizes of a CPU's blocks are multiples
_OVERHEAD = 22  # rows that cost a CPU as much as one more block does (512 x 1024, float32)

Carry = Any


class Plan(NamedTuple):
    """How segments are cut.

    Attributes:
      unit: slots that all sizes are multiples of.
      sizes: slots of a block, descending.
      turns: int32 [sizes[0] / unit, len(sizes)], the blocks of each size for a segment of so many
        units; longer ones are cut into blocks of the first size until they are not.
    """

    unit: int
    sizes: tuple[int, ...]
    turns: np.ndarray


def room(rows: int, experts: int) -> int:
    """R for so many rows of so many experts, each from a multiple of `ALIGN`."""
    return -(-(rows + experts * (ALIGN - 1)) // ALIGN) * ALIGN + _BEYOND


def plan(slots: int, experts: int) -> Plan:
    """The blocks for a buffer of R slots, for the platform that is traced for."""
    if platform() != "cpu":
        sizes = tuple(size for size in _SIZES if size <= slots)
        return Plan(ALIGN, sizes, _turns(ALIGN, sizes, 0))
    each = (slots - _BEYOND) / experts - (ALIGN - 1)  # when all experts are equally busy
    usual = max(2, min(round(each / ALIGN), _SIZES[0] // ALIGN) * 2)  # units
    # Of N rows by chance, the deviation is the root of N.
    above = round(1.5 * math.sqrt(usual * _UNIT) / _UNIT)
    parts = {2, usual // 4, usual // 2, usual, usual + above, usual + usual // 4}
    sizes = tuple(sorted({part * _UNIT for part in parts if part > 1}, reverse=True))
    return Plan(_UNIT, sizes, _turns(_UNIT, sizes, _OVERHEAD))


@functools.cache
def _turns(unit: int, sizes: tuple[int, ...], overhead: int) -> np.ndarray:
    """The cheapest blocks for every segment shorter than the first size; see `Plan`."""
    found = [(0, (0,) * len(sizes))]  # cost without what is beyond, blocks
    beyond = _BEYOND // unit if overhead else 0
    for units in range(1, sizes[0] // unit):
        options = []
        for which, size in enumerate(sizes):
            left = units - size // unit
            if left >= -beyond:
                cost, turns = found[max(left, 0)]
                more = tuple(n + (i == which) for i, n in enumerate(turns))
                options.append((cost + size + overhead, sum(more), more))
        cost, _, turns = min(options)
        found.append((cost, turns))
    return np.asarray([turns for _, turns in found], np.int32)


def _over_blocks(start: jax.Array, size: jax.Array, cut: Plan, body: Callable, carry: Carry):
    """Runs `body(first_slot, slots, own, carry)` over the blocks of a segment, of which the first
    `own` slots are the segment's.
    """
    units, largest = (size + cut.unit - 1) // cut.unit, cut.sizes[0] // cut.unit
    counts, more, end = jnp.asarray(cut.turns)[units % largest], units // largest, start + size
    for number, slots in enumerate(cut.sizes):
        turns = counts[number] + (0 if number else more)

        def turn(i, carry, slots=slots, start=start):
            first = start + i * slots
            return body(first, slots, end - first, carry)

        carry = lax.fori_loop(0, turns, turn, carry)
        start = start + turns * slots
    return carry


def _read(buffer: jax.Array, first: jax.Array, slots: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(buffer, first, slots)


def _write(buffer: jax.Array, value: jax.Array, first: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(buffer, value, first, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blocked(
    x: jax.Array, starts: jax.Array, sizes: jax.Array, weights: Weights, bias_form: str
) -> jax.Array:
    """Every expert on its own segment.

    Args:
      x: [R, D], as `moe.routing.slots.segments` lays them out with `ALIGN` and `room`; finite.
      starts: int32 [E], multiples of ALIGN.
      sizes: int32 [E].
      weights: in the type of x.
      bias_form: see `moe.kernels.batched`.

    Returns:
      [R, D] in the type of x; what slots of no segment hold is undefined, and their cotangents
      count for nothing.
    """
    return _forward(x, starts, sizes, weights, bias_form)[0]


def _forward(x, starts, sizes, weights, bias_form):
    width = weights["up"].shape[-1]  # F
    names = [name for name in ("gate", "up") if name in weights]
    cut = plan(x.shape[0], starts.shape[0])

    def expert(carry, one):
        start, size, w = one

        def block(first, slots, _, carry):
            out, projected = carry
            tokens = _read(x, first, slots)  # [slots, D]
            new = {name: tokens @ w[name] for name in names}  # each [slots, F]
            y = hidden(new, w.get("bias"), bias_form) @ w["down"]
            projected = {name: _write(projected[name], new[name], first) for name in names}
            return _write(out, y, first), projected

        return _over_blocks(start, size, cut, block, carry), None

    empty = {name: jnp.zeros((x.shape[0], width), x.dtype) for name in names}
    carry = jnp.zeros_like(x), empty
    (out, projected), _ = lax.scan(expert, carry, (starts, sizes, weights))
    projected = {name: keep(PRODUCT, value) for name, value in projected.items()}
    return out, (x, projected, starts, sizes, weights)


def _backward(bias_form, residuals, dout):
    x, projected, starts, sizes, weights = residuals
    cut = plan(x.shape[0], starts.shape[0])

    def expert(carry, one):
        number, start, size = one
        w = {name: _of(value, number) for name, value in weights.items()}

        def block(first, slots, own, carry):
            dx, dweights = carry
            tokens, dy = _read(x, first, slots), _read(dout, first, slots)  # [slots, D]
            dy = jnp.where(jnp.arange(slots)[:, None] < own, dy, 0)
            pre = {name: _read(value, first, slots) for name, value in projected.items()}
            h, pull = jax.vjp(lambda p, b: hidden(p, b, bias_form), pre, w.get("bias"))
            dpre, dbias = pull(dy @ w["down"].T)
            new = {name: tokens.T @ value for name, value in dpre.items()}
            new["down"] = h.T @ dy
            if "bias" in w:
                new["bias"] = dbias
            parts = (value @ w[name].T for name, value in dpre.items())
            dtokens = functools.reduce(jnp.add, parts)  # [slots, D]
            # Into the whole array, in place: a sum of one expert would have to be copied there.
            dweights = {name: _add(value, new[name], number) for name, value in dweights.items()}
            return _write(dx, dtokens, first), dweights

        return _over_blocks(start, size, cut, block, carry), None

    carry = jnp.zeros_like(x), jax.tree.map(jnp.zeros_like, weights)
    each = jnp.arange(len(starts), dtype=jnp.int32), starts, sizes
    (dx, dweights), _ = lax.scan(expert, carry, each)
    return dx, None, None, dweights


def _of(stack: jax.Array, number: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(stack, number, keepdims=False)


def _add(stack: jax.Array, value: jax.Array, number: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(stack, _of(stack, number) + value, number, 0)


blocked.defvjp(_forward, _backward)
