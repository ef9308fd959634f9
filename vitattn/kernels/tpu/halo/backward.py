"""The kernel of the five gradients; a step of the grid is an image and 128 of its channels.

    p  = softmax S, dp = v do                        [keys, L], S as in the forward pass
    ds = p (dp - sum of p dp over the keys)
    dq = k^T ds and, from the one-hot rows of the same product, the gradients of the terms
    dk = ds q^T, dv = p do^T                         added up where squares overlap

The softmax is made again: its sums cost the vector unit little beside the products, and nothing but
the operands is kept from the forward pass. Gradients of the tables are added up over the whole
grid.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.halo import squares, tiles
from vitattn.kernels.tpu.halo.forward import scratch, specs
from vitattn.kernels.tpu.halo.geometry import HALF, Geometry
from vitattn.kernels.tpu.registers import LANES
from vitattn.kernels.tpu.stages import NT, in_turn, product

Array = jax.Array


def _kernel(
    *refs,
    geometry: Geometry,
):
    from jax.experimental import pallas as pl

    table, shifts, hot, hot_rows = refs[:4]
    q, k, v, do, dq, dk, dv, dtable = refs[4:12]
    padded_q, padded_k, padded_v, padded_do, padded_dk, padded_dv = refs[12:18]
    queries, cotangents, keys, values, key_sums, value_sums = refs[18:]

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        dtable[...] = jnp.zeros_like(dtable)

    for image, padded in ((q, padded_q), (k, padded_k), (v, padded_v), (do, padded_do)):
        squares.load(image, padded, geometry)

    def clear(y, _):
        for padded in (padded_dk, padded_dv):
            padded[y] = jnp.zeros(padded.shape[1:], jnp.float32)

    jax.lax.fori_loop(0, geometry.padded[0], clear, None)

    def block_row(row, _):
        for padded, cut in ((padded_q, queries), (padded_do, cotangents)):
            squares.cut_blocks(padded, cut, row, geometry)
        for padded, cut in ((padded_k, keys), (padded_v, values)):
            squares.cut_squares(padded, cut, row, geometry)

        def some_blocks(turn, _):
            cols = [turn * geometry.abreast + n for n in range(geometry.abreast)]
            # All is read before anything is written, so that the blocks do not wait for each other.
            operands = [(queries[col], keys[col], values[col], cotangents[col]) for col in cols]
            fixed = (table[...], shifts[...], hot, hot_rows[...])
            works = [
                _passes(*own, *fixed, tiles.key_mask(geometry, row, col), geometry)
                for col, own in zip(cols, operands, strict=True)
            ]
            found = in_turn([work for block in works for work in block])
            count = len(geometry.passes)
            for n, col in enumerate(cols):
                dq, dk, dv, _ = zip(*found[n * count : (n + 1) * count], strict=True)
                queries[col] = tiles.off_lanes(jnp.concatenate(dq, 0), geometry)
                key_sums[col], value_sums[col] = _turned(dk), _turned(dv)
            dtable[...] += sum(one[3] for one in found)

        jax.lax.fori_loop(0, geometry.computed // geometry.abreast, some_blocks, None)
        squares.put_blocks(queries, padded_q, row, geometry)
        for cut, padded in ((key_sums, padded_dk), (value_sums, padded_dv)):
            squares.add_squares(cut, padded, row, geometry)

    jax.lax.fori_loop(0, geometry.rows.blocks, block_row, None)
    for padded, image in ((padded_q, dq), (padded_dk, dk), (padded_dv, dv)):
        squares.store(padded, image, geometry)


def _passes(
    q: Array,
    k: Array,
    v: Array,
    do: Array,
    table: Array,
    shifts: Array,
    hot,
    hot_rows: Array,
    mask: Array,
    geometry: Geometry,
) -> list[Generator[None, None, tuple[Array, Array, Array, Array]]]:
    """Of one block and each product: gradients of q [P, L], of k and v [P, keys], and of the tables
    [R, P].
    """
    dtype, depth = k.dtype, geometry.pass_depth
    own = tiles.head_lanes(geometry)
    q, do = tiles.on_lanes(q, geometry), tiles.on_lanes(do, geometry)  # [128, L]
    augmented = [tiles.beside_hot(k, hot[half], half) for half in range(geometry.halves)]
    key_rows = k.T  # [128, keys]
    blank = jnp.zeros((HALF, geometry.lanes), dtype)

    def one(first: int) -> Generator[None, None, tuple[Array, Array, Array, Array]]:
        chosen = slice(first, first + depth)
        query = jnp.where(own, q[chosen], 0)
        cotangent = jnp.where(own, do[chosen], 0)
        narrow, dnarrow = query.astype(dtype), cotangent.astype(dtype)
        terms = tiles.relative_terms(narrow, table, shifts, mask, geometry)
        yield
        query = tiles.beside_terms(query, terms, first)
        logits = product(augmented[first // HALF], query)  # [keys, L]
        dp = product(v, tiles.beside_terms(cotangent, blank, first))
        yield
        p = jnp.exp(logits - jnp.max(logits, 0, keepdims=True))
        p = p * (1 / jnp.sum(p, 0, keepdims=True))
        ds = (p * (dp - jnp.sum(p * dp, 0, keepdims=True))).astype(dtype)
        p = p.astype(dtype)
        yield
        both = product(jnp.concatenate([key_rows[chosen], hot_rows], 0), ds)  # [P + hot, L]
        dk = product(narrow, ds, NT)
        dv = product(dnarrow, p, NT)
        yield
        dterms = tiles.table_terms(both[depth:], shifts, geometry).astype(dtype)  # [R, L]
        yield
        dq = both[:depth] + product(table.T, dterms)
        return dq, dk, dv, product(dterms, narrow, NT)

    return [one(first) for first in geometry.passes]


def _turned(parts: Sequence[Array]) -> Array:
    """Parts [P, keys] -> [keys, 128], zeros beyond the channels."""
    x = jnp.concatenate(parts, 0)
    short = LANES - x.shape[0]
    if short:
        x = jnp.concatenate([x, jnp.zeros((short, x.shape[1]), x.dtype)], 0)
    return x.T


def backward(
    q: Array, k: Array, v: Array, do: Array, table: Array, geometry: Geometry, interpret: bool
) -> tuple[Array, Array, Array, Array]:
    """Gradients of q, k, v [B, H, W, N d] and, in float32, of the tables [R, P]."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    arrays, whole, image = specs(geometry, table)
    need = geometry.vmem(q.dtype.itemsize, arrays=7, images=6, staged=6)
    image_shape = jax.ShapeDtypeStruct(q.shape, q.dtype)
    return pl.pallas_call(
        functools.partial(_kernel, geometry=geometry),
        grid=(q.shape[0], geometry.groups),
        in_specs=[*whole, image, image, image, image],
        out_specs=[image, image, image, pl.BlockSpec(table.shape, lambda i, c: (0, 0))],
        out_shape=[image_shape] * 3 + [jax.ShapeDtypeStruct(table.shape, jnp.float32)],
        scratch_shapes=scratch(geometry, q.dtype, images=6, blocks=2, cut=2, sums=2),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=need + (4 << 20)
        ),
        interpret=interpret,
        name="halo_backward",
    )(*arrays, q, k, v, do)
