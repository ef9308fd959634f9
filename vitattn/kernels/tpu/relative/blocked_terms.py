"""What the forward and the backward kernel for large maps share: augmented keys and queries.

Letters: H W map, d query/key width a head, R rows of a block of keys, T queries of a tile, A depth
of augmented keys and queries.

    queries   [row terms of R rows | -logsumexp, mask | q | column terms of W columns]    [A, T]
    keys      [one row is 1        | 1 1 1     , 1    | k | one column is 1          ]^T  [.., A]

Their product is logits with everything that is added to them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from vitattn.kernels.tpu.registers import LANES, SUBLANES, filled
from vitattn.kernels.tpu.relative.blocks import EXTRA, Blocks
from vitattn.kernels.tpu.relative.shape import ABSENT
from vitattn.kernels.tpu.shift import gather_rows
from vitattn.kernels.tpu.stages import product

Array = jax.Array


def at_tile(b: Blocks, i):
    """The lanes of a tile of queries."""
    from jax.experimental import pallas as pl

    return pl.ds(pl.multiple_of(i * b.queries, LANES), b.queries)


def at_rows(b: Blocks, j):
    """The row terms of a block of keys."""
    from jax.experimental import pallas as pl

    return pl.ds(pl.multiple_of(j * b.row_terms, SUBLANES), b.row_terms)


def within(x: Array, first, pixels: int) -> Array:
    """float32 [.., lanes], zero in the lanes after the map, which hold anything at all."""
    lane = first + lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where(lane < pixels, x.astype(jnp.float32), 0.0)


def stacked(parts: list[Array], rows: int, dtype) -> Array:
    """Arrays [.., L] one under the other, each in whole registers, with zeros to `rows`."""
    lanes = parts[0].shape[1]
    whole = []
    for part in parts:
        missing = -part.shape[0] % SUBLANES
        whole.append(part.astype(jnp.float32))
        if missing:
            whole.append(jnp.zeros((missing, lanes), jnp.float32))
    missing = rows - sum(part.shape[0] for part in whole)
    if missing:
        whole.append(jnp.zeros((missing, lanes), jnp.float32))
    return jnp.concatenate(whole, axis=0).astype(dtype)


def block_of(b: Blocks, x: Array, j: int) -> Array:
    """float32 [rows, key lanes] of a block of keys; zero in lanes that are no key of it."""
    first = j * b.rows * b.width
    last = min(first + b.rows * b.width, b.pixels)
    return within(x[:, first : first + b.key_lanes], first, last)


def keep_keys(b: Blocks, ones: Array, k: Array, augmented, transposed=None) -> None:
    """Fills scratch with augmented keys.

    Args:
      b: sizes.
      ones: see `ones_of_keys`.
      k: [d, lanes].
      augmented: [blocks, key lanes, A].
      transposed: [blocks, gradients, key lanes], without the rows that have no gradient.
    """
    ones = ones.astype(jnp.float32)
    for j in range(b.blocks):
        key = block_of(b, k, j)
        above, columns = ones[: b.row_terms + EXTRA], ones[b.row_terms + EXTRA :]
        above = stacked([above, key], b.head, jnp.float32)
        rows = stacked([above, columns], filled(b.contracted, LANES), jnp.float32)
        augmented[j] = rows.T.astype(k.dtype)
        if transposed is not None:
            parts = [ones[: b.row_terms], key, columns]
            transposed[j] = stacked(parts, b.gradients, k.dtype)


def keep_queries(b: Blocks, q: Array, table, starts: Array, augmented, row_terms) -> None:
    """Fills scratch for a tile of queries.

    Args:
      b: sizes.
      q: [content, T], scaled.
      table: [sum of offsets, content], or None.
      starts: [16, T].
      augmented: [A, T]: what all blocks of keys have in common.
      row_terms: float32 [all row terms, T]; in rows after the map what masks them.
    """
    shape = row_terms.shape
    rows, columns = jnp.zeros(shape, jnp.float32), []
    if b.tables:
        terms = product(table, q)
        first = b.offsets[0]
        rows = stacked(
            [gather_rows(terms[:first], starts[:SUBLANES], b.height)], shape[0], jnp.float32
        )
        columns = [gather_rows(terms[first:], starts[SUBLANES:], b.width)]
    row = lax.broadcasted_iota(jnp.int32, shape, 0)
    row_terms[...] = jnp.where(row < b.height, rows, ABSENT)
    if columns:
        augmented[b.head :, :] = stacked(columns, b.contracted - b.head, q.dtype)


def for_block(b: Blocks, j, q: Array, extra: Array, augmented, row_terms) -> Array:
    """[A, T]: augmented queries for a block of keys; `extra` is float32 [EXTRA, T]."""
    terms = row_terms[at_rows(b, j), :]
    augmented[: b.head, :] = stacked([terms, extra, q], b.head, augmented.dtype)
    return augmented[...]
