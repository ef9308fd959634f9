"""Experts on segments of sorted rows, without padding to a capacity, on any backend.

Letters: E experts, R rows, D model width, F hidden width.

XLA has no matrix product with a number of rows known at run time only. So each expert's segment is
cut into blocks whose sizes are powers of two, largest first, and each size is a loop with as many
turns as are needed: few large products, at most `ALIGN - 1` rows of padding for each expert.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moe.kernels.batched import Weights, hidden
from trainlib.model.remat import PRODUCT, keep

ALIGN = 32
_SIZES = (1024, 512, 256, 128, 64, 32)  # rows of a block; all multiples of ALIGN

Carry = Any


def _over_blocks(
    start: jax.Array, size: jax.Array, limit: int, body: Callable, carry: Carry
) -> Carry:
    """Runs `body(first_row, rows, carry)` over the blocks of a segment of at most `limit` rows."""
    left = (size + ALIGN - 1) // ALIGN * ALIGN
    for rows in (rows for rows in _SIZES if rows <= limit):
        turns = left // rows

        def turn(i, carry, rows=rows, start=start):
            return body(start + i * rows, rows, carry)

        carry = lax.fori_loop(0, turns, turn, carry)
        start, left = start + turns * rows, left - turns * rows
    return carry


def _read(buffer: jax.Array, first: jax.Array, rows: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(buffer, first, rows)


def _write(buffer: jax.Array, value: jax.Array, first: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(buffer, value, first, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blocked(
    rows: jax.Array, starts: jax.Array, sizes: jax.Array, weights: Weights, form: str
) -> jax.Array:
    """Every expert on its own segment.

    Args:
      rows: [R, D], as `moe.routing.dispatch.segments` lays them out with `ALIGN`.
      starts: int32 [E], multiples of ALIGN.
      sizes: int32 [E].
      weights: in the type of rows.
      form: of the bias, see `moe.kernels.batched`.

    Returns:
      [R, D]; rows of no segment are zero.
    """
    return _forward(rows, starts, sizes, weights, form)[0]


def _forward(rows, starts, sizes, weights, form):
    width, kind = weights["up"].shape[-1], rows.dtype
    names = [name for name in ("gate", "up") if name in weights]

    def expert(carry, one):
        start, size, w = one

        def block(first, count, carry):
            out, pre = carry
            x = _read(rows, first, count)
            new = {name: x @ w[name] for name in names}
            y = hidden(new, w.get("bias"), form) @ w["down"]
            pre = {name: _write(pre[name], new[name], first) for name in names}
            return _write(out, y, first), pre

        return _over_blocks(start, size, rows.shape[0], block, carry), None

    empty = {name: jnp.zeros((rows.shape[0], width), kind) for name in names}
    carry = jnp.zeros_like(rows), empty
    (out, pre), _ = lax.scan(expert, carry, (starts, sizes, weights))
    pre = {name: keep(PRODUCT, value) for name, value in pre.items()}
    return out, (rows, pre, starts, sizes, weights)


def _backward(form, saved, dout):
    rows, pre, starts, sizes, weights = saved

    def expert(drows, one):
        start, size, w = one

        def block(first, count, carry):
            drows, dw = carry
            x, dy = _read(rows, first, count), _read(dout, first, count)
            projected = {name: _read(value, first, count) for name, value in pre.items()}
            h, pull = jax.vjp(lambda p, b: hidden(p, b, form), projected, w.get("bias"))
            dprojected, dbias = pull(dy @ w["down"].T)
            new = {name: x.T @ value for name, value in dprojected.items()}
            new["down"] = h.T @ dy
            if "bias" in w:
                new["bias"] = dbias
            dx = sum(value @ w[name].T for name, value in dprojected.items())
            return _write(drows, dx, first), jax.tree.map(jnp.add, dw, new)

        start_carry = drows, jax.tree.map(jnp.zeros_like, w)
        return _over_blocks(start, size, rows.shape[0], block, start_carry)

    drows, dweights = lax.scan(expert, jnp.zeros_like(rows), (starts, sizes, weights))
    return drows, None, None, dweights


blocked.defvjp(_forward, _backward)
