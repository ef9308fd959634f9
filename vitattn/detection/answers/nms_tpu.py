"""Non-maximum suppression on a TPU: all picks of eight images in one kernel.

B images, N candidates of an image, K picks; L the 128 lanes of a register.

In operations of XLA each pick is five passes over [B, N] with a start and an end of their own,
which take longer than the arithmetic. Here the candidates of eight images, one a sublane, stay in
the memory of the core. A pick is one walk over them that strikes out what overlaps the pick before
and keeps, lane by lane, the best that is left with its box and class; then the best lane is chosen.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.registers import LANES, SUBLANES, filled

Array = jax.Array

ABREAST = 8  # registers of candidates that are walked at once
LARGEST = 2**16  # N: with its six arrays twice, 25 MiB
_FIELDS = 6  # y0, x0, y1, x1, area, class


def picks(
    fields: tuple[Array, ...], keys: Array, *, iou: float, most: int, interpret: bool
) -> Array:
    """Returns i32 [B, K], as `nms.greedy_nms` does.

    Args:
      fields: y0, x0, y1, x1, area and class of each candidate, f32 [B, N] each.
      keys: f32 [B, N] without NaN; -inf for no candidate.
      iou: as there.
      most: K.
      interpret: runs it step by step, in operations of JAX.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    images, count = keys.shape
    rows, cols = filled(images, SUBLANES), filled(count, ABREAST * LANES)
    room = ((0, rows - images), (0, cols - count))
    given = [jnp.pad(field.astype(jnp.float32), room) for field in fields]
    places = filled(most, LANES)
    block = pl.BlockSpec((SUBLANES, cols), lambda i: (i, 0))
    found = pl.pallas_call(
        functools.partial(_kernel, iou=iou, most=most),
        grid=(rows // SUBLANES,),
        in_specs=[block] * (_FIELDS + 1),
        out_specs=pl.BlockSpec((SUBLANES, places), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((rows, places), jnp.float32),
        scratch_shapes=[pltpu.VMEM((SUBLANES, cols), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=4 * SUBLANES * cols * (2 * _FIELDS + 3) + (8 << 20),
        ),
        interpret=interpret,
        name="greedy_nms",
    )(*given, jnp.pad(keys, room, constant_values=-jnp.inf))
    return found[:images, :most].astype(jnp.int32)


def _kernel(top, left, bottom, right, area, kind, keys, out, alive, *, iou: float, most: int):
    """The refs are [8, N] and [8, K]; `alive` holds the keys of what is left."""
    alive[...] = keys[...]
    fields = (top, left, bottom, right, area, kind)
    lane = jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1).astype(jnp.float32)
    low = jnp.full((SUBLANES, LANES), -jnp.inf)
    zero = jnp.zeros((SUBLANES, LANES), jnp.float32)
    out[...] = jnp.full(out.shape, -1.0)

    def walk(number, picked):
        """Strikes out what the pick overlaps; returns the best that is left, lane by lane."""

        def some(step, best):
            from jax.experimental import pallas as pl

            for one in range(ABREAST):
                first = pl.multiple_of((step * ABREAST + one) * LANES, LANES)
                here = (slice(None), pl.ds(first, LANES))
                values = tuple(field[here] for field in fields)
                at = lane + first.astype(jnp.float32)
                struck = (at == number) | _overlap(values, picked, iou)
                key = jnp.where(struck, -jnp.inf, alive[here])
                alive[here] = key
                better = key > best[0]
                best = tuple(
                    jnp.where(better, new, old)
                    for new, old in zip((key, at, *values), best, strict=True)
                )
            return best

        start = (low, *[zero] * (1 + _FIELDS))
        return jax.lax.fori_loop(0, alive.shape[1] // (ABREAST * LANES), some, start)

    def pick(step, before):
        number, picked = before
        best, at, *values = walk(number, picked)
        top_key = jnp.max(best, 1, keepdims=True)
        tied = best == top_key
        first = jnp.min(jnp.where(tied, at, jnp.inf), 1, keepdims=True)
        chosen = tied & (at == first)

        def of_chosen(value):
            spread = jnp.sum(jnp.where(chosen, value, 0.0), 1, keepdims=True)
            return jnp.broadcast_to(spread, value.shape)

        from jax.experimental import pallas as pl

        there = top_key > -jnp.inf
        here = (slice(None), pl.ds(pl.multiple_of(step // LANES * LANES, LANES), LANES))
        place = lane == (step % LANES).astype(jnp.float32)
        out[here] = jnp.where(place & there, first, out[here])
        number = jnp.broadcast_to(jnp.where(there, first, -1.0), lane.shape)
        return number, tuple(map(of_chosen, values))

    # The pick before the first one: no candidate, of no class.
    none = (zero - 1, (*[zero] * (_FIELDS - 1), zero - 1))
    jax.lax.fori_loop(0, most, pick, none)


def _overlap(values: tuple[Array, ...], picked: tuple[Array, ...], iou: float) -> Array:
    """Whether candidates overlap a pick of their class; see `nms.greedy_nms`."""
    (y0, x0, y1, x1, area, kind), (top, left, bottom, right, size, label) = values, picked
    height = jnp.maximum(jnp.minimum(y1, bottom) - jnp.maximum(y0, top), 0.0)
    width = jnp.maximum(jnp.minimum(x1, right) - jnp.maximum(x0, left), 0.0)
    shared = height * width
    return (shared > iou * (area + size - shared)) & (kind == label)
