"""Operands of the products of one block, made of what was cut out: for both kernels.

Letters: L lanes, R entries of both tables, P depth of the heads of one product.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vitattn.kernels.plain.attend import MASK_BIAS
from vitattn.kernels.tpu.halo.geometry import HALF, Geometry
from vitattn.kernels.tpu.registers import LANES, filled
from vitattn.kernels.tpu.shift import gather_rows, scatter_rows
from vitattn.kernels.tpu.stages import product

Array = jax.Array


def head_lanes(geometry: Geometry) -> Array:
    """bool [P, L]: whether a lane is a query of the head of a channel."""
    shape = (geometry.pass_depth, geometry.lanes)
    channel = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    # `//` of arrays asks for signs, which are only lowered where there is a TPU.
    return jax.lax.div(channel, geometry.depth) == jax.lax.div(lane, geometry.queries)


def on_lanes(block: Array, geometry: Geometry) -> Array:
    """Queries f32 [queries, 128] -> [128, L], once in each slot."""
    return jnp.concatenate([block] * geometry.slots, 0).T


def off_lanes(x: Array, geometry: Geometry) -> Array:
    """f32 [channels, L] -> [queries, 128]; of each channel the lanes of its own head."""
    short = LANES - x.shape[0]
    if short:
        x = jnp.concatenate([x, jnp.zeros((short, x.shape[1]), x.dtype)], 0)
    x = x.T  # [L, 128]
    out = x[: geometry.queries]
    channel = jax.lax.broadcasted_iota(jnp.int32, out.shape, 1)
    slot = jax.lax.rem(jax.lax.div(channel, geometry.depth), geometry.together)
    for n in range(1, geometry.together):
        out = jnp.where(slot == n, x[n * geometry.queries : (n + 1) * geometry.queries], out)
    return out


def key_mask(geometry: Geometry, row, col) -> Array:
    """f32 [key_rows + key_cols, L], what no query of the block at (row, col) may see."""

    def beyond(axis, size, block):
        place = jax.lax.broadcasted_iota(jnp.int32, (size, geometry.lanes), 0)
        outside = place >= axis.keys
        if geometry.mask_border:
            at = place + (block * axis.block - axis.halo)
            outside = outside | (at < 0) | (at >= axis.size)
        return jnp.where(outside, MASK_BIAS, 0.0)

    rows = beyond(geometry.rows, geometry.key_rows, row)
    return jnp.concatenate([rows, beyond(geometry.cols, geometry.key_cols, col)], 0)


def relative_terms(q: Array, table: Array, shifts: Array, mask: Array, geometry: Geometry) -> Array:
    """Row and column terms of the logits [HALF, L], in the type of q.

    Args:
      q: [P, L], queries of the heads on their lanes.
      table: [R, P], both tables once for each head.
      shifts: i32 [16, L].
      mask: f32 [key_rows + key_cols, L].
    """
    rows, cols = geometry.rows, geometry.cols
    terms = product(table, q)  # [R, L]
    cut = rows.table_rows, rows.table_rows + cols.table_rows
    row = gather_rows(terms[: cut[0]], shifts[:8], rows.keys, most=rows.block - 1)
    col = gather_rows(terms[cut[0] : cut[1]], shifts[8:], cols.keys, most=cols.block - 1)
    row, col = _filled_up(row, geometry.key_rows), _filled_up(col, geometry.key_cols)
    terms = jnp.concatenate([row, col], 0) + mask
    rest = jnp.zeros((HALF - terms.shape[0], geometry.lanes), jnp.float32)
    return jnp.concatenate([terms, rest], 0).astype(q.dtype)


def _filled_up(x: Array, rows: int) -> Array:
    """x with so many rows, the rest zeros."""
    rest = jnp.zeros((rows - x.shape[0], x.shape[1]), x.dtype)
    return jnp.concatenate([x, rest], 0) if rest.size else x


def table_terms(dterms: Array, shifts: Array, geometry: Geometry) -> Array:
    """The transpose of the moves of `relative_terms`, [key_rows + key_cols, L] -> f32 [R, L]."""
    rows, cols = geometry.rows, geometry.cols
    drow, dcol = dterms[: geometry.key_rows], dterms[geometry.key_rows :]
    # Beyond the keys of a square nothing has a gradient.
    drow, dcol = drow[: filled(rows.keys, 8)], dcol[: filled(cols.keys, 8)]
    drow = scatter_rows(drow, shifts[:8], rows.keys, rows.table_rows, most=rows.block - 1)
    rest = geometry.entries - rows.table_rows
    dcol = scatter_rows(dcol, shifts[8:], cols.keys, rest, most=cols.block - 1)
    return jnp.concatenate([drow, dcol], 0)


def beside_terms(channels: Array, terms: Array, first: int) -> Array:
    """[P, L] at channel `first` of its tile and the terms [HALF, L] in the other half -> [128, L].

    The channels are float32: tiles of float32 are cut at any eight rows.
    """
    half, at = divmod(first, HALF)
    blank = [jnp.zeros((n, channels.shape[1]), channels.dtype) for n in _around(at, channels)]
    own = [x for x in (blank[0], channels, blank[1]) if x.shape[0]]
    own = jnp.concatenate(own, 0).astype(terms.dtype)
    return jnp.concatenate([own, terms] if half == 0 else [terms, own], 0)


def _around(at: int, channels: Array) -> tuple[int, int]:
    return at, HALF - at - channels.shape[0]


def beside_hot(keys: Array, hot: Array, half: int) -> Array:
    """Keys [keys, 128] in one half of the lanes and one-hot rows and columns in the other."""
    lane = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 1)
    return jnp.where((lane < HALF) == (half == 0), keys, hot)
