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
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.relative.shape import Shape
from vitattn.kernels.tpu.relative.shift import gather_rows, scatter_rows

Array = jax.Array


class Offsets(NamedTuple):
    """What the terms of rows and columns are made from.

    Attributes:
      shifts: int32 [16, L], `Shape.shifts`.
      table: [R, D], both tables.
      transposed: [D, R], the same; for the backward pass.
    """

    shifts: Array
    table: Array
    transposed: Array


class Positions(NamedTuple):
    """What all heads and images share.

    Attributes:
      places: f32 [A - D, L], `Shape.places`.
      offsets: None without relative terms.
    """

    places: Array
    offsets: Offsets | None


def product(left: Array, right: Array, contracted: tuple[int, int] = (1, 0)) -> Array:
    """A matrix product in float32; float32 factors are not rounded."""
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(
        left, right, dimensions, preferred_element_type=jnp.float32, precision=exact
    )


def _parts(x: Array, dtype: jnp.dtype, count: int) -> list[Array]:
    """x as a sum of numbers that `dtype` holds."""
    parts = []
    for _ in range(count):
        part = x.astype(dtype).astype(jnp.float32)
        parts.append(part)
        x = x - part
    return parts


def _put_rows(x: Array, rows: Mapping[int, Array | float]) -> Array:
    """x with some of its rows replaced."""
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for index, value in rows.items():
        x = jnp.where(row == index, value, x)
    return x


def _with_terms(
    shape: Shape,
    positions: Positions,
    q: Array,
    last: Mapping[int, Array | float],
    dtype: jnp.dtype,
) -> Array:
    """Queries [D, L] with their terms and the last rows, [A, L]."""
    parts = [q]
    if positions.offsets is not None:
        shifts, table, _ = positions.offsets
        products = product(table, q.astype(dtype))  # [R, L]
        rows, columns = products[: shape.row_offsets], products[shape.row_offsets :]
        columns = columns[: shape.col_offsets]
        parts.append(gather_rows(rows, shifts[:8], shape.height))
        parts.append(gather_rows(columns, shifts[8:], shape.width))
    parts.append(_put_rows(jnp.zeros((shape.extra, q.shape[1]), jnp.float32), last))
    return jnp.concatenate(parts, 0).astype(dtype)


def _with_ones(shape: Shape, v: Array) -> Array:
    """Values [E, L] with two rows of ones below them."""
    return _put_rows(v, {shape.value_depth: 1.0, shape.value_depth + 1: 1.0})


def forward(
    shape: Shape, positions: Positions, q: Array, k: Array, v: Array, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """Attention of one head.

    Args:
      shape: of the map.
      positions: what heads share, read.
      q: f32 [D, L], scaled; 0 beyond the depth and beyond the map, as k and v.
      k: f32 [D, L].
      v: f32 [E, L].
      dtype: of the factors of products.

    Returns:
      (f32 [E, L], of which the row after the values is 1; logsumexp f32 [1, L]).
    """
    queries = _with_terms(shape, positions, q, {3: 1.0}, dtype)  # [A, L]
    keys = jnp.concatenate([k, positions.places], 0).astype(dtype).T[: shape.keys]  # [K, A]
    logits = product(keys, queries)  # [K, L]
    top = jnp.max(logits, 0, keepdims=True)
    p = jnp.exp(logits - top).astype(dtype)
    values = _with_ones(shape, v)[:, : shape.keys].astype(dtype)
    out = product(values, p)  # [E, L]
    total = out[shape.value_depth : shape.value_depth + 1]
    return out / total, top + jnp.log(total)


class Gradients(NamedTuple):
    """Of one head, float32.

    Attributes:
      q: [D, L].
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
) -> Gradients:
    """Gradients of `forward` for a cotangent f32 [E, L], 0 beyond the values and beyond the map.

    `out` is what it returned, rounded or not.
    """
    parts = enumerate(_parts(logsumexp, dtype, 3))
    last = {index: -part for index, part in parts} | {3: 1.0}
    queries = _with_terms(shape, positions, q, last, dtype)
    augmented = jnp.concatenate([k, positions.places], 0).astype(dtype)  # [A, L]
    keys = augmented.T[: shape.keys]  # [K, A]
    values = _with_ones(shape, v).astype(dtype).T[: shape.keys]  # [K, E]
    delta = _parts(jnp.sum(cotangent * out, 0, keepdims=True), dtype, 2)
    beside = {shape.value_depth + index: -part for index, part in enumerate(delta)}
    cotangent = _put_rows(cotangent, beside).astype(dtype)

    p = jnp.exp(product(keys, queries))  # [K, L]
    dlogits = (p * product(values, cotangent)).astype(dtype)
    dv = product(cotangent, p.astype(dtype), (1, 1))  # [E, K]
    dk = product(queries[: shape.key_rows], dlogits, (1, 1))  # [D, K]
    dqueries = product(augmented[:, : shape.keys], dlogits)  # [A, L]
    dq, dtable = dqueries[: shape.key_rows], None
    if positions.offsets is not None:
        shifts, _, transposed = positions.offsets
        middle = shape.key_rows + shape.row_terms
        rows = scatter_rows(
            dqueries[shape.key_rows : middle],
            shifts[:8],
            shape.height,
            shape.row_offsets,
        )
        columns = scatter_rows(
            dqueries[middle : shape.augmented_end],
            shifts[8:],
            shape.width,
            shape.offsets - shape.row_offsets,
        )
        dproducts = jnp.concatenate([rows, columns], 0).astype(dtype)  # [R, L]
        dq = dq + product(transposed, dproducts)
        dtable = product(dproducts, q.astype(dtype), (1, 1))
    return Gradients(dq, dk, dv, dtable)
