"""The kernel of the result: a step of the grid is an image and 128 of its channels.

    S = [k, one-hot rows and columns] [q, row terms, column terms]     [keys, L]
    o = v^T exp(S - max S) / sum exp(S - max S)                         [P, L]

Letters as in `geometry`; P channels of the heads of one product.
"""

from __future__ import annotations

import functools
from collections.abc import Generator

import jax
import jax.numpy as jnp

from vitattn.kernels.tpu.halo import squares, tiles
from vitattn.kernels.tpu.halo.geometry import HALF, Geometry, constants
from vitattn.kernels.tpu.registers import LANES
from vitattn.kernels.tpu.stages import in_turn, product

Array = jax.Array


def _kernel(table, shifts, hot, _hot_rows, q, k, v, out, *scratch, geometry: Geometry):
    padded_q, padded_k, padded_v, blocks, keys, values = scratch
    for image, padded in ((q, padded_q), (k, padded_k), (v, padded_v)):
        squares.load(image, padded, geometry)

    def block_row(row, _):
        squares.cut_blocks(padded_q, blocks, row, geometry)
        squares.cut_squares(padded_k, keys, row, geometry)
        squares.cut_squares(padded_v, values, row, geometry)

        def some_blocks(turn, _):
            cols = [turn * geometry.abreast + n for n in range(geometry.abreast)]
            # All is read before anything is written, so that the blocks do not wait for each other.
            operands = [(blocks[col], keys[col], values[col]) for col in cols]
            fixed = (table[...], shifts[...], hot)
            works = [
                _passes(*own, *fixed, tiles.key_mask(geometry, row, col), geometry)
                for col, own in zip(cols, operands, strict=True)
            ]
            parts = in_turn([work for block in works for work in block])
            count = len(geometry.passes)
            results = [
                tiles.off_lanes(jnp.concatenate(parts[at : at + count], 0), geometry)
                for at in range(0, len(parts), count)
            ]
            for col, result in zip(cols, results, strict=True):
                blocks[col] = result

        jax.lax.fori_loop(0, geometry.computed // geometry.abreast, some_blocks, None)
        squares.put_blocks(blocks, padded_q, row, geometry)

    jax.lax.fori_loop(0, geometry.rows.blocks, block_row, None)
    squares.store(padded_q, out, geometry)


def _passes(
    q: Array,
    k: Array,
    v: Array,
    table: Array,
    shifts: Array,
    hot,
    mask: Array,
    geometry: Geometry,
) -> list[Generator[None, None, Array]]:
    """Results [P, L] of one block with queries [queries, 128], k and v [keys, 128]."""
    dtype, own = k.dtype, tiles.head_lanes(geometry)
    q = tiles.on_lanes(q, geometry)  # [128, L]
    augmented = [tiles.beside_hot(k, hot[half], half) for half in range(geometry.halves)]
    value_rows = v.T  # [128, keys]

    def one(first: int) -> Generator[None, None, Array]:
        chosen = slice(first, first + geometry.pass_depth)
        query = jnp.where(own, q[chosen], 0)
        terms = tiles.relative_terms(query.astype(dtype), table, shifts, mask, geometry)
        yield
        query = tiles.beside_terms(query, terms, first)
        logits = product(augmented[first // HALF], query)  # [keys, L]
        yield
        p = jnp.exp(logits - jnp.max(logits, 0, keepdims=True))
        total = jnp.sum(p, 0, keepdims=True)
        p = p.astype(dtype)
        yield
        return product(value_rows[chosen], p) * (1 / total)

    return [one(first) for first in geometry.passes]


def specs(geometry: Geometry, table: Array):
    """Blocks of the table and the constants, and of an image."""
    from jax.experimental import pallas as pl

    arrays = (table, *constants(geometry, table.dtype))

    def whole(x):
        return pl.BlockSpec(x.shape, lambda i, c: (0,) * x.ndim)

    size = (None, geometry.rows.size, geometry.cols.size, geometry.channels)
    image = pl.BlockSpec(size, lambda i, c: (i, 0, 0, c))
    return arrays, [whole(x) for x in arrays], image


def scratch(geometry: Geometry, dtype, *, images: int, blocks: int, cut: int, sums: int):
    """Memory of a step: padded images, f32 blocks, squares in `dtype`, and f32 squares."""
    from jax.experimental.pallas import tpu as pltpu

    count = geometry.computed
    square = (count, geometry.keys, LANES)
    return [
        *[pltpu.VMEM((*geometry.padded, LANES), jnp.float32)] * images,
        *[pltpu.VMEM((count, geometry.queries, LANES), jnp.float32)] * blocks,
        *[pltpu.VMEM(square, dtype)] * cut,
        *[pltpu.VMEM(square, jnp.float32)] * sums,
    ]


def forward(
    q: Array, k: Array, v: Array, table: Array, geometry: Geometry, interpret: bool
) -> Array:
    """[B, H, W, N d] of each and the tables [R, P] -> [B, H, W, N d]."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    arrays, whole, image = specs(geometry, table)
    need = geometry.vmem(q.dtype.itemsize, arrays=4, images=3, staged=3)
    return pl.pallas_call(
        functools.partial(_kernel, geometry=geometry),
        grid=(q.shape[0], geometry.groups),
        in_specs=[*whole, image, image, image],
        out_specs=image,
        out_shape=jax.ShapeDtypeStruct(v.shape, v.dtype),
        scratch_shapes=scratch(geometry, q.dtype, images=3, blocks=1, cut=2, sums=0),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=need + (4 << 20)
        ),
        interpret=interpret,
        name="halo_forward",
    )(*arrays, q, k, v)
