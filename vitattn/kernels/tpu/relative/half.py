"""The augmented half of a convolution on a TPU: projections, attention and projection of the
result, a kernel for each pass.

Letters: B batch, I images of a block, H W map, P pixels, L pixels filled up to lanes, N heads, C F
channels of the map and of the result, d e depth of keys and values, R E rows of a head's queries,
keys and values together and of its values; see `shape`.

    x [P, B, C]    as a TPU keeps a map [B, H, W, C] beside convolutions: batch on sublanes,
      |            channels on lanes. A block is all pixels of 8 images.
      | swapped and filled up: [I, L, C]
    qkv [N, R, L]  = weight [N R, C] . x[i]^T, an image at a time: pixels on lanes
      | a head at a time
    o [N, E, L], logsumexp [N, 1, L]     all that is kept for the backward pass beside x
      | out_weight [N E, F]
    y [I, P, F] -> [P, B, F]

Left to XLA the projections write what the kernel reads, and copies between the layouts of
convolutions, products and kernel take as long as the attention. Here a map is read and written
once, and nothing lies between. The backward pass projects again: that takes less time than reading
the projections from HBM. Gradients of weights are summed in VMEM over the images, in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trainlib.sharding.kernels import core_memory
from vitattn.kernels.tpu.registers import LANES, SUBLANES, filled
from vitattn.kernels.tpu.relative import head
from vitattn.kernels.tpu.relative.head import Offsets, Positions
from vitattn.kernels.tpu.relative.shape import MOST_PIXELS, Shape
from vitattn.kernels.tpu.relative.tables import packed_tables
from vitattn.kernels.tpu.stages import in_turn, product

Array = jax.Array

IMAGES = SUBLANES  # I: of a block
_SHARE = 0.75  # of VMEM, for what is counted; the rest is for registers
_AHEAD = (
    1400  # registers of logits of heads in turn; the more, the more is written to VMEM and back
)
_LIMIT = 0.9  # of VMEM, for all of a kernel


class Weights(NamedTuple):
    """Projections and tables in the layout of the kernels, float32; see `packed`.

    Attributes:
      qkv: [N R, C].
      out: [N E, F].
      table: [R', D], rows of both tables; None without relative terms.
    """

    qkv: Array
    out: Array
    table: Array | None


class _Loops(NamedTuple):
    """What the kernels loop over: N heads, B images; and whether they are interpreted."""

    heads: int
    batch: int
    interpret: bool


def packed(
    shape: Shape, heads: int, scale: float, qkv: Array, out: Array, tables: tuple[Array, ...]
) -> Weights:
    """Weights as layers have them -> as the kernels take them.

    Args:
      shape: of the map.
      heads: N.
      scale: of the logits; it goes into the projection of queries.
      qkv: [C, N (2 d + e)], all queries, then all keys, then all values.
      out: [N e, F].
      tables: [2H-1, d] and [2W-1, d], or none.
    """
    qkv, out = qkv.astype(jnp.float32), out.astype(jnp.float32)
    depth = heads * shape.key_depth
    parts = jnp.split(qkv.T, (depth, 2 * depth))  # [N d, C] and [N e, C]
    parts[0] = parts[0] * scale
    rows = (shape.key_rows, shape.key_rows, shape.value_rows)
    by_head = [
        _filled(part.reshape(heads, -1, part.shape[-1]), most)
        for part, most in zip(parts, rows, strict=True)
    ]
    out = _filled(out.reshape(heads, shape.value_depth, -1), shape.value_rows)
    table = None
    if tables:
        table = packed_tables(shape, *tables)
    merged = jnp.concatenate(by_head, 1)  # [N, R, C]
    return Weights(merged.reshape(-1, merged.shape[-1]), out.reshape(-1, out.shape[-1]), table)


def _filled(x: Array, rows: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, rows - x.shape[1]), (0, 0)))


def fits(shape: Shape, heads: int, channels: int, width: int, dtype: Any) -> bool:
    """Whether the kernels can do a map, with F = `width`, on the chip that is traced for."""
    if not all(isinstance(n, int) for n in (shape.height, shape.width)):
        return False
    size = _memory(shape, heads, channels, width, jnp.dtype(dtype).itemsize)
    return shape.pixels <= MOST_PIXELS and size <= _SHARE * core_memory()


def _memory(shape: Shape, heads: int, channels: int, width: int, itemsize: int) -> int:
    """Bytes of VMEM of the backward pass, which takes the most."""
    c, f, wide = filled(channels, LANES), filled(width, LANES), shape.lanes
    maps = 2 * IMAGES * shape.pixels * (2 * c + f) * itemsize  # fetched while others are used
    swapped = IMAGES * (wide * (c + f) + shape.pixels * c) * itemsize
    weights = heads * (shape.rows * c + shape.value_rows * f) * (2 * itemsize + 8)
    kept = 2 * IMAGES * heads * wide * (shape.value_rows * itemsize + 4)
    projected = heads * wide * (2 * shape.rows + shape.value_rows) * 4
    logits = 6 * shape.keys * wide * 4
    return maps + swapped + weights + kept + projected + logits


def augmented_half(shape: Shape, heads: int, interpret: bool, x: Array, weights: Weights) -> Array:
    """Attention of every pixel to every pixel of its image, with the projections around it.

    Args:
      shape: of the map.
      heads: N.
      interpret: runs the kernels in operations of JAX.
      x: [B, H, W, C].
      weights: of `packed`.

    Returns:
      [B, H, W, F] in the type of x; statistics and sums are float32.
    """
    return _half(shape, heads, interpret, x, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _half(shape: Shape, heads: int, interpret: bool, x: Array, weights: Weights) -> Array:
    return _forward(shape, heads, interpret, x, weights)[0]


def _forward(shape: Shape, heads: int, interpret: bool, x: Array, weights: Weights):
    rounded = _rounded(weights, x.dtype)
    y, out, logsumexp = _forward_call(shape, heads, interpret, _by_pixel(x), rounded)
    return _by_image(y, x.shape[1:3]), (x, weights, out, logsumexp)


def _backward(shape: Shape, heads: int, interpret: bool, residuals, cotangent: Array):
    x, weights, out, logsumexp = residuals
    rounded = _rounded(weights, x.dtype)
    maps = (_by_pixel(x), _by_pixel(cotangent))
    dx, gradients = _backward_call(shape, heads, interpret, maps, rounded, out, logsumexp)
    return _by_image(dx, x.shape[1:3]), gradients


_half.defvjp(_forward, _backward)


def _rounded(weights: Weights, dtype: jnp.dtype) -> Weights:
    return jax.tree.map(lambda w: w.astype(dtype), weights)


def _by_pixel(x: Array) -> Array:
    """[B, H, W, C] -> [P, B, C], which names the dimensions as a TPU has them in memory."""
    return x.transpose(1, 2, 0, 3).reshape(-1, x.shape[0], x.shape[3])


def _by_image(x: Array, size: tuple[int, ...]) -> Array:
    """[P, B, C] -> [B, H, W, C]."""
    return x.reshape(*size, *x.shape[1:]).transpose(2, 0, 1, 3)


def _constants(shape: Shape, weights: Weights) -> Positions:
    places = jnp.asarray(shape.places())
    if weights.table is None:
        return Positions(places, None)
    table = weights.table
    return Positions(places, Offsets(jnp.asarray(shape.shifts()), table, table.T))


def _read(refs: Any) -> Any:
    """The arrays of a tree of references."""
    return jax.tree.map(lambda ref: ref[...], refs)


def _count(batch: int) -> Any:
    """Images of the block of this step that there are; the last block may be cut off."""
    from jax.experimental import pallas as pl

    if batch % IMAGES == 0:
        return IMAGES
    return jnp.minimum(IMAGES, batch - IMAGES * pl.program_id(0))


def _heads_of(image: Any, heads: int) -> Any:
    from jax.experimental import pallas as pl

    return pl.ds(image * heads, heads)


def _project(weight: Array, image: Array, heads: int) -> Array:
    """[N R, C] and an image [L, C] -> [N, R, L] in float32."""
    projected = product(weight, image, (1, 1))
    return projected.reshape(heads, -1, image.shape[0])


def _split(shape: Shape, rows: Array) -> tuple[Array, Array, Array]:
    """Rows [R, L] of a head -> queries, keys, values."""
    keys = 2 * shape.key_rows
    return rows[: shape.key_rows], rows[shape.key_rows : keys], rows[keys:]


def _for_heads(shape: Shape, loops: _Loops, most: int, some: Callable[[list[Any]], None]) -> None:
    """Runs `some` on heads, so many in turn (`stages.in_turn`) that their logits, all taken
    together, have up to `most` registers.
    """
    registers = shape.keys // SUBLANES * shape.lanes // LANES
    limit = 2 if loops.interpret else max(1, most // registers)
    together = max(n for n in range(1, limit + 1) if loops.heads % n == 0)

    def body(n: Any, _: None) -> None:
        some([n * together + i for i in range(together)])

    jax.lax.fori_loop(0, loops.heads // together, body, None)


def _forward_kernel(shape, loops, positions, weights, x, y, out, logsumexp, *scratch):
    from jax.experimental import pallas as pl

    heads = loops.heads
    images, results, qkv = scratch  # [I, L, C], [I, P, F], [N, R, L]
    dtype, pixels = x.dtype, shape.pixels

    @pl.when(pl.program_id(0) == 0)
    def _():
        images[...] = jnp.zeros_like(images)  # rows beyond the map stay so

    images[:, :pixels] = jnp.swapaxes(x[...], 0, 1)
    shared = _read(positions)

    def one_image(i, _):
        qkv[...] = _project(weights.qkv[...], images[i], heads)

        def some(numbers):
            each = (head.forward(shape, shared, *_split(shape, qkv[n]), dtype) for n in numbers)
            for n, (attended, statistics) in zip(numbers, in_turn(each), strict=True):
                out[i * heads + n] = attended.astype(dtype)
                logsumexp[i * heads + n] = statistics

        _for_heads(shape, loops, _AHEAD, some)
        joined = out[_heads_of(i, heads)].reshape(-1, shape.lanes)  # [N E, L]
        result = product(joined, weights.out[...], (0, 0))  # [L, F]
        results[i] = result[:pixels].astype(dtype)

    jax.lax.fori_loop(0, _count(loops.batch), one_image, None)
    y[...] = jnp.swapaxes(results[...], 0, 1)


def _backward_kernel(shape, loops, positions, weights, inputs, dx, gradients, *scratch):
    from jax.experimental import pallas as pl

    heads = loops.heads
    x, cotangent, out, logsumexp = inputs
    # [I, L, C], [I, L, F], [I, P, C], [N, R, L], [N, R, L], [N, E, L]
    images, cotangents, results, qkv, dqkv, dout = scratch
    dtype, pixels = x.dtype, shape.pixels

    @pl.when(pl.program_id(0) == 0)
    def _():
        for ref in (images, cotangents, dqkv, *jax.tree.leaves(gradients)):
            ref[...] = jnp.zeros_like(ref)

    images[:, :pixels] = jnp.swapaxes(x[...], 0, 1)
    cotangents[:, :pixels] = jnp.swapaxes(cotangent[...], 0, 1)
    shared = _read(positions)

    def one_image(i, _):
        qkv[...] = _project(weights.qkv[...], images[i], heads)
        dout[...] = _project(weights.out[...], cotangents[i], heads)

        def one(n):
            given = out[i * heads + n].astype(jnp.float32), logsumexp[i * heads + n], dout[n]
            return head.backward(shape, shared, *_split(shape, qkv[n]), *given, dtype)

        def some(numbers):
            found = in_turn(map(one, numbers))
            keys = 2 * shape.key_rows
            for n, of_head in zip(numbers, found, strict=True):
                dqkv[n, : shape.key_rows] = of_head.q
                dqkv[n, shape.key_rows : keys, : shape.keys] = of_head.k
                dqkv[n, keys:, : shape.keys] = of_head.v
            if gradients.table is not None:
                tables = [of_head.table for of_head in found if of_head.table is not None]
                gradients.table[...] += functools.reduce(jnp.add, tables)

        _for_heads(shape, loops, _AHEAD // 2, some)
        rows = dqkv[...].reshape(-1, shape.lanes).astype(dtype)  # [N R, L]
        joined = out[_heads_of(i, heads)].reshape(-1, shape.lanes)  # [N E, L]
        gradients.qkv[...] += product(rows, images[i])
        gradients.out[...] += product(joined, cotangents[i])
        results[i] = product(rows, weights.qkv[...], (0, 0))[:pixels].astype(dtype)

    jax.lax.fori_loop(0, _count(loops.batch), one_image, None)
    dx[...] = jnp.swapaxes(results[...], 0, 1)


def _whole(array: Any) -> Any:
    """The block of something that all steps share."""
    from jax.experimental import pallas as pl

    return pl.BlockSpec(array.shape, lambda i: (0,) * array.ndim)


def _maps(shape: Shape, channels: int) -> Any:
    from jax.experimental import pallas as pl

    return pl.BlockSpec((shape.pixels, IMAGES, channels), lambda i: (0, i, 0))


def _by_heads(shape: Shape, heads: int, rows: int) -> Any:
    from jax.experimental import pallas as pl

    return pl.BlockSpec((IMAGES * heads, rows, shape.lanes), lambda i: (i, 0, 0))


def _options(shape: Shape, heads: int, batch: int, x: Array, width: int) -> dict[str, Any]:
    from jax.experimental.pallas import tpu as pltpu

    need = _memory(shape, heads, x.shape[-1], width, x.dtype.itemsize)
    return {
        "grid": (filled(batch, IMAGES) // IMAGES,),
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=("arbitrary",),
            vmem_limit_bytes=min(max(2 * need, 16 * 2**20), int(_LIMIT * core_memory())),
        ),
    }


def _forward_call(shape, heads, interpret, x, weights):
    """x [P, B, C] -> y [P, B, F], o [B' N, E, L] and logsumexp f32 [B' N, 1, L], where B' is B
    filled up to whole blocks.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    (pixels, batch, channels), dtype = x.shape, x.dtype
    width, many = weights.out.shape[1], filled(batch, IMAGES) * heads
    positions = _constants(shape, weights)
    loops = _Loops(heads, batch, interpret)
    return pl.pallas_call(
        functools.partial(_forward_kernel, shape, loops),
        in_specs=[
            jax.tree.map(_whole, positions),
            jax.tree.map(_whole, weights),
            _maps(shape, channels),
        ],
        out_specs=[
            _maps(shape, width),
            _by_heads(shape, heads, shape.value_rows),
            _by_heads(shape, heads, 1),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((pixels, batch, width), dtype),
            jax.ShapeDtypeStruct((many, shape.value_rows, shape.lanes), dtype),
            jax.ShapeDtypeStruct((many, 1, shape.lanes), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((IMAGES, shape.lanes, channels), dtype),
            pltpu.VMEM((IMAGES, pixels, width), dtype),
            pltpu.VMEM((heads, shape.rows, shape.lanes), jnp.float32),
        ],
        interpret=interpret,
        name="augmented_half_forward",
        **_options(shape, heads, batch, x, width),
    )(positions, weights, x)


def _backward_call(shape, heads, interpret, maps, weights, out, logsumexp):
    """x [P, B, C] and cotangents [P, B, F] -> dx and the gradients of weights, float32."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    x, cotangent = maps
    (pixels, batch, channels), dtype = x.shape, x.dtype
    width = weights.out.shape[1]
    positions = _constants(shape, weights)
    loops = _Loops(heads, batch, interpret)
    inputs = (x, cotangent, out, logsumexp)
    gradients = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.float32), weights)
    projected = pltpu.VMEM((heads, shape.rows, shape.lanes), jnp.float32)
    return pl.pallas_call(
        functools.partial(_backward_kernel, shape, loops),
        in_specs=[
            jax.tree.map(_whole, positions),
            jax.tree.map(_whole, weights),
            (
                _maps(shape, channels),
                _maps(shape, width),
                _by_heads(shape, heads, shape.value_rows),
                _by_heads(shape, heads, 1),
            ),
        ],
        out_specs=[_maps(shape, channels), jax.tree.map(_whole, weights)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, dtype), gradients],
        scratch_shapes=[
            pltpu.VMEM((IMAGES, shape.lanes, channels), dtype),
            pltpu.VMEM((IMAGES, shape.lanes, width), dtype),
            pltpu.VMEM((IMAGES, pixels, channels), dtype),
            projected,
            projected,
            pltpu.VMEM((heads, shape.value_rows, shape.lanes), jnp.float32),
        ],
        interpret=interpret,
        name="augmented_half_backward",
        **_options(shape, heads, batch, x, width),
    )(positions, weights, inputs)
