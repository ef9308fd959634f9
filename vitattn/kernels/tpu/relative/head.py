"""One head of 2-D relative attention with all its queries at once, as a kernel computes it.

Letters: P pixels, L and K pixels filled up for lanes and for sublanes, D E rows of keys and values,
A rows of a query with its terms, R entries of both tables; see `shape`.

    logits = [q, q.rel_h, q.rel_w, -logsumexp, 1] . [k, one-hot row, one-hot column, 1, absent]

The relative terms ride in depth that the matrix unit fills with zeros otherwise, so that the bias
costs no operation on logits; the backward product of dlogits with the same keys yields the
gradients of the terms in its further rows. The logsumexp, in parts that bfloat16 holds, makes
probabilities of the product without a subtraction; a row of ones beside the values gives the sum of
the softmax, and delta rides beside their cotangents. Channels are along sublanes and pixels along
lanes; logits have keys along sublanes, so that the maximum is taken from register to register.

Both passes yield between their stages, and `stages.in_turn` runs those of several heads stage by
stage: the compiler keeps to the order in which operations are written, so that one head after the
other would wait for each of its products.

Logits, their maximum and the logsumexp are to base 2, which is what the chip raises to a power; the
factor goes into the queries, which are few.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.registers import SUBLANES, filled
from vitattn.kernels.tpu.relative.shape import Shape
from vitattn.kernels.tpu.shift import gather_rows, put_rows, rows_of, scatter_rows, tiles_of
from vitattn.kernels.tpu.stages import parts_of, product

Array = jax.Array
T = TypeVar("T")

_LOG2E = math.log2(math.e)
_FEW = 3  # channels of values that the vector unit multiplies


class Offsets(NamedTuple):
    """What the terms of rows and columns are made from.

    Attributes:
      shifts: int32 [16, L], `Shape.shifts`.
      table: [R, D], both tables (`tables.packed_tables`).
      transposed: [D, R], the same; for the backward pass.
    """

    shifts: Array
    table: Array
    transposed: Array


class Positions(NamedTuple):
    """What all heads and images share.

    Attributes:
      places: f32 [A, L], `Shape.places`.
      offsets: None without relative terms.
    """

    places: Array
    offsets: Offsets | None


def _stacked(pieces: list[tuple[Array, int]], rows: int) -> Array:
    """One below the other: the first row of a piece is where it says, modulo the 8 of a register,
    and the piece has other rows, which are not taken, before and after those that count.
    """
    tiles: list[Array] = []
    for x, first in pieces:
        own = tiles_of(x)
        if first % SUBLANES:
            own[0] = jnp.where(rows_of(own[0]) < first % SUBLANES, tiles[first // SUBLANES], own[0])
        tiles = tiles[: first // SUBLANES] + own
    return jnp.concatenate(tiles[: rows // SUBLANES], 0)


def _with_terms(
    shape: Shape, positions: Positions, q: Array, last: list[Array | float], dtype: jnp.dtype
) -> Array:
    """Queries [D, L] with their terms and the last rows, [A, L]."""
    pieces = [(q, 0)]
    if positions.offsets is not None:
        shifts, table, _ = positions.offsets
        products = product(table, q.astype(dtype))  # [R, L]
        rows, columns = products[: shape.row_offsets], products[shape.row_offsets :]
        columns = columns[: shape.col_offsets]
        rows = gather_rows(rows, shifts[:8], shape.height, shape.row_offset)
        columns = gather_rows(columns, shifts[8:], shape.width, shape.col_offset)
        pieces += [(rows, shape.row_terms), (columns, shape.col_terms)]
    first = shape.last % SUBLANES
    size = shape.augmented - (shape.last - first)
    ending = jnp.zeros((size, q.shape[1]), jnp.float32)
    ending = put_rows(ending, {first + n: row for n, row in enumerate(last)})
    return _stacked([*pieces, (ending, shape.last)], shape.augmented).astype(dtype)


def _with_places(positions: Positions, k: Array, dtype: jnp.dtype) -> Array:
    """Keys [D, L] with what stands for positions, [A, L]."""
    places = positions.places
    above = places[: k.shape[0]] + k
    return jnp.concatenate([above, places[k.shape[0] :]], 0).astype(dtype)


def _kept(x: Array, first: int, size: int) -> Array:
    """x with zeros but for rows first to first + size."""
    row = rows_of(x)
    return jnp.where((row >= first) & (row < first + size), x, 0.0)


def _with_ones(shape: Shape, v: Array) -> Array:
    """Values [E, L] with two rows of ones below them."""
    return put_rows(v, {shape.value_depth: 1.0, shape.value_depth + 1: 1.0})


def forward(
    shape: Shape, positions: Positions, q: Array, k: Array, v: Array, dtype: jnp.dtype
) -> Generator[None, None, tuple[Array, Array]]:
    """Attention of one head, in stages.

    Args:
      shape: of the map.
      positions: what heads share, read.
      q: f32 [D, L], scaled; 0 beyond the depth and beyond the map, as k and v.
      k: f32 [D, L].
      v: f32 [E, L].
      dtype: of the factors of products.

    Returns:
      (f32 [E, L], of which the row after the values is 1; logsumexp to base 2, f32 [1, L]).
    """
    queries = _with_terms(shape, positions, q * _LOG2E, [0.0, 0.0, 0.0, 1.0], dtype)  # [A, L]
    yield
    keys = _with_places(positions, k, dtype).T[: shape.keys]  # [K, A]
    logits = product(keys, queries)  # [K, L]
    yield
    top = jnp.max(logits, 0, keepdims=True)
    p = jnp.exp2(logits - top).astype(dtype)
    yield
    values = _with_ones(shape, v)[:, : shape.keys].astype(dtype)
    out = product(values, p)  # [E, L]
    total = out[shape.value_depth : shape.value_depth + 1]
    return out / total, top + jnp.log2(total)


class Gradients(NamedTuple):
    """Of one head, float32.

    Attributes:
      q: [D, L]; rows beyond the depth hold something else, as those of k.
      k: [D, K].
      v: [E, K]; two rows after the values hold something else.
      table: [R, D], or None.
    """

    q: Array
    k: Array
    v: Array
    table: Array | None


def backward(
    shape: Shape,
    positions: Positions,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    logsumexp: Array,
    cotangent: Array,
    dtype: jnp.dtype,
) -> Generator[None, None, Gradients]:
    """Gradients of `forward`, in stages, for a cotangent f32 [E, L], 0 beyond values and map.

    `out` is what it returned, rounded or not.
    """
    scaled = q * _LOG2E
    last = [*(-part for part in parts_of(logsumexp, dtype, 3)), 1.0]
    queries = _with_terms(shape, positions, scaled, last, dtype)
    yield
    augmented = _with_places(positions, k, dtype)  # [A, L]
    keys = augmented.T[: shape.keys]  # [K, A]
    delta = jnp.sum(cotangent * out, 0, keepdims=True)
    dp = _centred(shape, v, cotangent, delta, dtype)
    cotangent = cotangent.astype(dtype)

    yield
    p = jnp.exp2(product(keys, queries))  # [K, L]
    dlogits = (p * dp).astype(dtype)
    yield
    dv = product(cotangent, p.astype(dtype), (1, 1))  # [E, K]
    dk = product(queries[: shape.key_rows], dlogits, (1, 1)) / _LOG2E  # [D, K]
    dqueries = product(augmented[: shape.differentiated, : shape.keys], dlogits)
    dq, dtable = dqueries[: shape.key_rows], None
    yield
    if positions.offsets is not None:
        shifts, _, transposed = positions.offsets
        dproducts = _dproducts(shape, shifts, dqueries).astype(dtype)  # [R, L]
        dq = dq + product(transposed, dproducts)
        dtable = product(dproducts, q.astype(dtype), (1, 1))
    return Gradients(dq, dk, dv, dtable)


def _centred(shape: Shape, v: Array, cotangent: Array, delta: Array, dtype: jnp.dtype) -> Array:
    """Gradients of probabilities less their mean, v^T . cotangent - delta: f32 [K, L].

    The matrix unit takes as long for a depth of 1 as for one of 128, and it is what large maps wait
    for; the vector unit makes a product of few channels in less.
    """
    if shape.value_depth <= _FEW:
        values, total = v.T[: shape.keys], -delta
        for n in range(shape.value_depth):
            total = total + values[:, n : n + 1] * cotangent[n : n + 1]
        return total
    values = _with_ones(shape, v).astype(dtype).T[: shape.keys]  # [K, E]
    beside = enumerate(parts_of(delta, dtype, 2))
    rows = {shape.value_depth + index: -part for index, part in beside}
    return product(values, put_rows(cotangent, rows).astype(dtype))


def _dproducts(shape: Shape, shifts: Array, dqueries: Array) -> Array:
    """Gradients of queries with their terms -> of the products of table and queries, [R, L]."""

    def terms(start: int, size: int) -> Array:
        first = start // SUBLANES * SUBLANES
        rows = dqueries[first : filled(start + size, SUBLANES)]
        return _kept(rows, start - first, size)

    rows, columns = terms(shape.row_terms, shape.height), terms(shape.col_terms, shape.width)
    below = shape.offsets - shape.row_offsets
    of_rows = scatter_rows(rows, shifts[:8], shape.height, shape.row_offsets, shape.row_offset)
    of_columns = scatter_rows(columns, shifts[8:], shape.width, below, shape.col_offset)
    return jnp.concatenate([of_rows, of_columns], 0)
