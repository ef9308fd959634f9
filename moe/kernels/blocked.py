"""Experts on segments of sorted tokens, without padding to a capacity, on any backend.

Letters: E experts, R slots of the buffer of tokens, D model width, F hidden width.

XLA has no matrix product with a number of rows known at run time only. So each expert's segment is
cut into blocks whose sizes are powers of two, largest first, and each size is a loop with as many
turns as are needed: few large products, at most `ALIGN - 1` slots of padding for each expert.
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
_SIZES = (1024, 512, 256, 128, 64, 32)  # slots of a block; all multiples of ALIGN

Carry = Any


def _over_blocks(
    start: jax.Array, size: jax.Array, limit: int, body: Callable, carry: Carry
) -> Carry:
    """Runs `body(first_slot, slots, carry)` over the blocks of a segment of at most `limit`."""
    left = (size + ALIGN - 1) // ALIGN * ALIGN
    for slots in (slots for slots in _SIZES if slots <= limit):
        turns = left // slots

        def turn(i, carry, slots=slots, start=start):
            return body(start + i * slots, slots, carry)

        carry = lax.fori_loop(0, turns, turn, carry)
        start, left = start + turns * slots, left - turns * slots
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
      x: [R, D], as `moe.routing.slots.segments` lays them out with `ALIGN`.
      starts: int32 [E], multiples of ALIGN.
      sizes: int32 [E].
      weights: in the type of x.
      bias_form: see `moe.kernels.batched`.

    Returns:
      [R, D] in the type of x; slots of no segment are zero.
    """
    return _forward(x, starts, sizes, weights, bias_form)[0]


def _forward(x, starts, sizes, weights, bias_form):
    width = weights["up"].shape[-1]  # F
    names = [name for name in ("gate", "up") if name in weights]

    def expert(carry, one):
        start, size, w = one

        def block(first, slots, carry):
            out, projected = carry
            tokens = _read(x, first, slots)  # [slots, D]
            new = {name: tokens @ w[name] for name in names}  # each [slots, F]
            y = hidden(new, w.get("bias"), bias_form) @ w["down"]
            projected = {name: _write(projected[name], new[name], first) for name in names}
            return _write(out, y, first), projected

        return _over_blocks(start, size, x.shape[0], block, carry), None

    empty = {name: jnp.zeros((x.shape[0], width), x.dtype) for name in names}
    carry = jnp.zeros_like(x), empty
    (out, projected), _ = lax.scan(expert, carry, (starts, sizes, weights))
    projected = {name: keep(PRODUCT, value) for name, value in projected.items()}
    return out, (x, projected, starts, sizes, weights)


def _backward(bias_form, residuals, dout):
    x, projected, starts, sizes, weights = residuals

    def expert(dx, one):
        start, size, w = one

        def block(first, slots, carry):
            dx, dw = carry
            tokens, dy = _read(x, first, slots), _read(dout, first, slots)  # [slots, D]
            pre = {name: _read(value, first, slots) for name, value in projected.items()}
            h, pull = jax.vjp(lambda p, b: hidden(p, b, bias_form), pre, w.get("bias"))
            dpre, dbias = pull(dy @ w["down"].T)
            new = {name: tokens.T @ value for name, value in dpre.items()}
            new["down"] = h.T @ dy
            if "bias" in w:
                new["bias"] = dbias
            parts = (value @ w[name].T for name, value in dpre.items())
            dtokens = functools.reduce(jnp.add, parts)  # [slots, D]
            return _write(dx, dtokens, first), jax.tree.map(jnp.add, dw, new)

        start_carry = dx, jax.tree.map(jnp.zeros_like, w)
        return _over_blocks(start, size, x.shape[0], block, start_carry)

    dx, dweights = lax.scan(expert, jnp.zeros_like(x), (starts, sizes, weights))
    return dx, None, None, dweights


blocked.defvjp(_forward, _backward)
