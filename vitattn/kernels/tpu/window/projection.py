"""Projections into packed maps and out of them, as kernels: packing costs no pass of its own.

Dimension letters: B images, H W map, C channels of the map, G head blocks of S = 8 heads, d
channels of a head, T tiles of p images each, L lanes; see `packing`.

    packed[g, t, y, c, s, i (W + R) + x] = sum over C of w[g, c S + s, C] map[t p + i, y, x, C]
    map[t p + i, y, x, C]     = sum over g, c, s of w[g, c S + s, C] packed[g, t, y, c, s, ..]

A row of pixels of p images lies on sublanes one after another, with the gaps between the images;
the matrix unit takes it transposed, so that pixels come out on lanes. XLA would write the same
layout from a product too, but needs passes for the gaps that cost more than the attention. With a
one-hot w this is packing and unpacking. The two are transposes of each other.

Around the kernels a map lies as XLA likes it: rows of pixels on sublanes where they fill tiles of
eight, and else images, [H, W, B, C], if those do. In the second form a step has a row of all images
and all tiles, and takes the pixels of an image with a stride of B.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainlib.sharding.kernels import core_memory
from vitattn.kernels.tpu.registers import LANES, SUBLANES
from vitattn.kernels.tpu.window.packing import Packing

Array = jax.Array

_ROWS = 16  # of the map in one step of the grid, at most
_ROWS_OF_ALL = 2  # where a step has all images
_MEMORY = 64 << 20  # bytes of VMEM of a kernel, at most
_SHARE = 0.85  # of the memory of a core that has less
_NN, _NT, _TN = (1, 0), (1, 1), (0, 0)  # contracted dimensions


def _product(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32, precision=precision)


def packing_of(batch: int, heads: int, height: int, width: int, window: int) -> Packing:
    """The packing of head blocks of eight, one after another, each with whole tiles of images."""
    blocks = -(-heads // SUBLANES)
    one = Packing(batch, SUBLANES, height, width, window)
    return Packing(blocks * one.tiles * one.across, SUBLANES, height, width, window, blocks)


def _limit() -> int:
    return min(_MEMORY, int(_SHARE * core_memory()))


def fits(packing: Packing, shape: Sequence[int], depths: Sequence[int], item: int) -> bool:
    """Whether the device traced for holds what the kernel of the gradients keeps, the larger one.

    Args:
      packing: from `packing_of`.
      shape: of the map, [B, H, W, C].
      depths: d of each of the projections.
      item: bytes of a number of the map.
    """
    call = _Call(packing, shape, packing.blocks)
    wide = LANES * len(call.parts)
    map_block: Any = call.map_spec().block_shape
    packed_block: Any = call.packed_spec(sum(depths)).block_shape
    *outer, pixels, _ = map_block
    image = math.prod(outer) * -(-pixels // SUBLANES) * SUBLANES * wide
    weights = packing.blocks * SUBLANES * sum(depths) * wide
    packed = math.prod(packed_block)
    rows = 2 * 4 * sum(math.prod(one.shape) for one in call.memory())
    # Blocks are fetched and written while others are computed on.
    kept = 2 * item * (2 * image + packed + weights) + 2 * 4 * weights + rows
    return kept <= 0.9 * _limit()


class _Call:
    """What both kernels share: sizes, blocks, and rows of pixels in and out of VMEM."""

    def __init__(self, packing: Packing, shape: Sequence[int], blocks: int):
        self.packing, self.blocks = packing, blocks
        self.batch, self.height, self.width, self.channels = shape
        self.tiles = packing.tiles // blocks
        # As XLA lays out maps: see the head of this file.
        self.images_inside = self.width % SUBLANES > 0 and self.batch % SUBLANES == 0
        self.rows = self._rows(_ROWS_OF_ALL if self.images_inside else _ROWS)
        self.inside = self.tiles if self.images_inside else 1  # tiles of a step
        self.grid = (self.tiles // self.inside, self.height // self.rows)

    def _rows(self, most: int) -> int:
        """Rows of the map in one step of the grid."""
        most = min(self.height, most)
        rows = max(n for n in range(1, most + 1) if self.height % n == 0)
        return rows if 2 * rows >= most else self.height

    def outside(self, x: Array) -> Array:
        """A map [B, H, W, C] as the kernel takes it."""
        return x.transpose(1, 2, 0, 3) if self.images_inside else x

    def inverse(self, x: Array) -> Array:
        """What the kernel gives as [B, H, W, C]."""
        return x.transpose(2, 0, 1, 3) if self.images_inside else x

    def map_shape(self, dtype) -> jax.ShapeDtypeStruct:
        size = (self.batch, self.height, self.width, self.channels)
        if self.images_inside:
            size = (*size[1:3], size[0], size[3])
        return jax.ShapeDtypeStruct(size, dtype)

    def map_spec(self):
        """A block of a map: [p, rows, W, C], or [rows, W, B, C]."""
        from jax.experimental import pallas as pl

        if self.images_inside:
            size = (self.rows, self.width, self.batch, self.channels)
            return pl.BlockSpec(size, lambda t, y: (y, 0, 0, 0))
        size = (self.packing.across, self.rows, self.width, self.channels)
        return pl.BlockSpec(size, lambda t, y: (t, y, 0, 0))

    def packed_spec(self, depth: int):
        """A block [G, tiles, rows, d, S, L] of packed maps [G, T, H, d, S, L]."""
        from jax.experimental import pallas as pl

        lanes = self.packing.lanes
        size = (self.blocks, self.inside, self.rows, depth, SUBLANES, lanes)
        return pl.BlockSpec(size, lambda t, y: (0, t, y, 0, 0, 0))

    def whole_spec(self, shape: Sequence[int]):
        from jax.experimental import pallas as pl

        return pl.BlockSpec(tuple(shape), lambda t, y: (0,) * len(shape))

    def packed_shape(self, depth: int, dtype) -> jax.ShapeDtypeStruct:
        packing = self.packing
        size = (self.blocks, self.tiles, self.height, depth, SUBLANES, packing.lanes)
        return jax.ShapeDtypeStruct(size, dtype)

    def memory(self) -> list:
        """Of a row of pixels, float32 [parts, L, 128], as packed rows of bfloat16 begin at even
        ones; and, where a step has all images, of the row of all of them, [parts, W B, 128]: only
        rows of one tile are read with a stride.
        """
        from jax.experimental.pallas import tpu as pltpu

        rows = [self.packing.lanes]
        if self.images_inside:
            rows.append(self.width * self.batch)
        return [pltpu.VMEM((len(self.parts), n, LANES), jnp.float32) for n in rows]

    @property
    def parts(self) -> list[slice]:
        """Channels in parts of 128."""
        ends = range(0, self.channels, LANES)
        return [slice(first, min(first + LANES, self.channels)) for first in ends]

    def parameters(self):
        from jax.experimental.pallas import tpu as pltpu

        order = ("arbitrary", "arbitrary")
        return pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=_limit())

    def put(self, value: Array, ref, at: int = 0) -> None:
        """Rows of float32 [n, C] into memory [parts, .., 128], from row `at` on."""
        for n, part in enumerate(self.parts):
            ref[n, at : at + value.shape[0], : part.stop - part.start] = value[:, part]

    def whole(self, ref) -> Array:
        """Memory [parts, n, 128] as float32 [n, C]."""
        parts = [ref[n, :, : p.stop - p.start] for n, p in enumerate(self.parts)]
        return jnp.concatenate(parts, 1)

    def lines(self, image, scratch, y, first_tile) -> Iterator[Array]:
        """Row y of the images of each tile of the step, [L, C] in the type of the map; zeros
        between images and beyond the batch.
        """
        from jax.experimental import pallas as pl

        line, width = scratch[0], self.width
        if self.images_inside:
            row = image[y].astype(jnp.float32)
            self.put(row.reshape(width * self.batch, self.channels), scratch[1])
        for tile in range(self.inside):
            for i in range(self.packing.across):
                at, b = i * self.packing.pitch, tile * self.packing.across + i
                if not self.images_inside:
                    row = image[i, y].astype(jnp.float32)
                    if self.batch % self.packing.across:
                        row = jnp.where(first_tile * self.packing.across + i < self.batch, row, 0)
                    self.put(row, line, at)
                    continue
                for n in range(len(self.parts)):
                    row = jnp.zeros((width, LANES), jnp.float32)
                    if b < self.batch:
                        at_pixels = (pl.ds(n, 1), pl.ds(b, width, stride=self.batch), slice(None))
                        row = scratch[1][at_pixels][0]
                    line[n, at : at + width] = row
            yield self.whole(line).astype(image.dtype)

    def write(self, values: Iterable[Array], scratch, image, y) -> None:
        """The transpose of `lines`: f32 [L, C] of each tile to row y."""
        from jax.experimental import pallas as pl

        line, width = scratch[0], self.width
        for tile, value in enumerate(values):
            self.put(value, line)
            for i in range(self.packing.across):
                at, b = i * self.packing.pitch, tile * self.packing.across + i
                if not self.images_inside:
                    parts = [
                        line[n, at : at + width, : p.stop - p.start]
                        for n, p in enumerate(self.parts)
                    ]
                    image[i, y] = jnp.concatenate(parts, 1).astype(image.dtype)
                elif b < self.batch:
                    for n in range(len(self.parts)):
                        row = line[n, at : at + width]
                        at_pixels = (pl.ds(n, 1), pl.ds(b, width, stride=self.batch), slice(None))
                        scratch[1][at_pixels] = row[None]
        if self.images_inside:
            row = self.whole(scratch[1]).reshape(width, self.batch, self.channels)
            image[y] = row.astype(image.dtype)


def _clear(*refs) -> None:
    """Zeros at the first step of the grid."""
    from jax.experimental import pallas as pl

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        for ref in refs:
            ref[...] = jnp.zeros_like(ref)


def _flat(packed, g: int, tile: int, y) -> Array:
    """Row y of a packed map as a matrix [d S, L]."""
    x = packed[g, tile, y].astype(jnp.float32)
    return x.reshape(-1, x.shape[-1]).astype(packed.dtype)


def _into(x: Array, weights: Sequence[Array], packing: Packing, interpret: bool) -> list[Array]:
    """Packed maps [G, T, H, d, S, L] of x [B, H, W, C], one for each of the weights [G, d S, C]."""
    from jax.experimental import pallas as pl

    count, blocks = len(weights), weights[0].shape[0]
    call = _Call(packing, x.shape, blocks)
    depths = [w.shape[1] // SUBLANES for w in weights]

    def kernel(image, *refs):
        ws, outs, scratch = refs[:count], refs[count : 2 * count], refs[2 * count :]
        _clear(scratch[0])
        first = pl.program_id(0)

        def one_row(y, _):
            for tile, line in enumerate(call.lines(image, scratch, y, first)):
                for w, out, depth in zip(ws, outs, depths, strict=True):
                    for g in range(blocks):
                        value = _product(w[g], line, _NT)  # [d S, L]
                        value = value.reshape(depth, SUBLANES, -1)
                        out[g, tile, y] = value.astype(out.dtype)

        jax.lax.fori_loop(0, call.rows, one_row, None)

    return pl.pallas_call(
        kernel,
        grid=call.grid,
        in_specs=[call.map_spec(), *(call.whole_spec(w.shape) for w in weights)],
        out_specs=[call.packed_spec(depth) for depth in depths],
        out_shape=[call.packed_shape(depth, x.dtype) for depth in depths],
        scratch_shapes=call.memory(),
        compiler_params=call.parameters(),
        interpret=interpret,
        name="project_into",
    )(call.outside(x), *weights)


def _out_of(
    packed: Sequence[Array],
    weights: Sequence[Array],
    shape: Sequence[int],
    packing: Packing,
    interpret: bool,
    x: Array | None = None,
) -> list[Array]:
    """The sum of what the weights [G, d S, C] make of packed maps, [B, H, W, C]; with the map x
    that they were projected from, also the float32 gradients of the weights.
    """
    from jax.experimental import pallas as pl

    count, blocks = len(weights), weights[0].shape[0]
    call = _Call(packing, shape, blocks)
    xs = () if x is None else (call.outside(x),)

    def kernel(*refs):
        refs = iter(refs)
        arrays, ws, image, out, dws = (
            list(itertools.islice(refs, n)) for n in (count, count, len(xs), 1, count * len(xs))
        )
        scratch = list(refs)
        split = len(call.memory())
        first = pl.program_id(0)
        if image:
            _clear(scratch[split], *dws)

        def one_row(y, _):
            values = [
                [_flat(array, g, tile, y) for array in arrays for g in range(blocks)]
                for tile in range(call.inside)
            ]
            terms = jnp.concatenate([w[g] for w in ws for g in range(blocks)], 0)
            sums = (_product(jnp.concatenate(one, 0), terms, _TN) for one in values)
            call.write(sums, scratch[:split], out[0], y)
            if not image:
                return
            lines = call.lines(image[0], scratch[split:], y, first)
            for one, line in zip(values, lines, strict=True):
                for n, value in enumerate(one):
                    dws[n // blocks][n % blocks] += _product(value, line, _NN)

        jax.lax.fori_loop(0, call.rows, one_row, None)

    dweights = [jax.ShapeDtypeStruct(w.shape, jnp.float32) for w in weights] if xs else []
    out, *dweights = pl.pallas_call(
        kernel,
        grid=call.grid,
        in_specs=[
            *(call.packed_spec(array.shape[3]) for array in packed),
            *(call.whole_spec(w.shape) for w in weights),
            *(call.map_spec() for _ in xs),
        ],
        out_specs=[call.map_spec(), *(call.whole_spec(one.shape) for one in dweights)],
        out_shape=[call.map_shape(packed[0].dtype), *dweights],
        scratch_shapes=call.memory() * (1 + len(xs)),
        compiler_params=call.parameters(),
        interpret=interpret,
        name="project_out_of",
    )(*packed, *weights, *xs)
    return [call.inverse(out), *dweights]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def project_into(
    x: Array, weights: tuple[Array, ...], packing: Packing, interpret: bool
) -> tuple[Array, ...]:
    """Packed maps of a map.

    Args:
      x: [B, H, W, C].
      weights: [G, d S, C] each, in the type of x.
      packing: from `packing_of`.
      interpret: run the kernels step by step on any backend.

    Returns:
      [G T, H, d, S, L] for each of the weights, with zeros between the images and beyond them.
    """
    return _project_into(x, weights, packing, interpret)


def _project_into(x, weights, packing, interpret):
    packed = _into(x, weights, packing, interpret)
    return tuple(one.reshape(packing.shape(one.shape[3])) for one in packed)


def _into_forward(x, weights, packing, interpret):
    return _project_into(x, weights, packing, interpret), (x, weights)


def _into_backward(packing, interpret, residuals, cotangents):
    x, weights = residuals
    cotangents = _split(cotangents, weights[0].shape[0])
    dx, *dweights = _out_of(cotangents, weights, x.shape, packing, interpret, x)
    pairs = zip(dweights, weights, strict=True)
    return dx, tuple(dw.astype(w.dtype) for dw, w in pairs)


project_into.defvjp(_into_forward, _into_backward)


def _split(packed: Sequence[Array], blocks: int) -> list[Array]:
    """[G T, ...] -> [G, T, ...]."""
    return [one.reshape(blocks, -1, *one.shape[1:]) for one in packed]


def _pack(x: Array, heads: int, packing: Packing, interpret: bool) -> Array:
    order = one_hot(heads, x.shape[-1] // heads, x.dtype)
    return _project_into(x, (order,), packing, interpret)[0]


def _unpack(packed: Array, heads: int, batch: int, packing: Packing, interpret: bool) -> Array:
    depth = packed.shape[2]
    order = one_hot(heads, depth, packed.dtype)
    shape = (batch, packing.height, packing.width, heads * depth)
    return _out_of(_split([packed], order.shape[0]), (order,), shape, packing, interpret)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def pack(x: Array, heads: int, packing: Packing, interpret: bool) -> Array:
    """[B, H, W, heads d] -> [G T, H, d, S, L], with zeros between the images and beyond them."""
    return _pack(x, heads, packing, interpret)


pack.defvjp(
    lambda x, heads, packing, interpret: (_pack(x, heads, packing, interpret), x.shape[0]),
    lambda heads, packing, interpret, batch, cotangent: (
        _unpack(cotangent, heads, batch, packing, interpret),
    ),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def unpack(packed: Array, heads: int, batch: int, packing: Packing, interpret: bool) -> Array:
    """[G T, H, d, S, L] -> [B, H, W, heads d]; what lies between the images is left out."""
    return _unpack(packed, heads, batch, packing, interpret)


unpack.defvjp(
    lambda packed, *sizes: (_unpack(packed, *sizes), None),
    lambda heads, batch, packing, interpret, _, cotangent: (
        _pack(cotangent, heads, packing, interpret),
    ),
)


def one_hot(heads: int, depth: int, dtype: jax.typing.DTypeLike) -> Array:
    """Weights [G, d S, heads d] that only order channels; those of heads to fill a block are 0."""
    blocks = -(-heads // SUBLANES)
    out = np.zeros((blocks, depth, SUBLANES, heads * depth), np.float32)
    for n in range(heads):
        for c in range(depth):
            out[n // SUBLANES, c, n % SUBLANES, n * depth + c] = 1
    return jnp.asarray(out.reshape(blocks, depth * SUBLANES, heads * depth), dtype)


def weights_of(kernel: Array, heads: int) -> Array:
    """Weights [G, d S, C] of a projection [C, heads d]."""
    channels, blocks = kernel.shape[0], -(-heads // SUBLANES)
    kernel = kernel.reshape(channels, heads, -1)
    kernel = jnp.pad(kernel, ((0, 0), (0, blocks * SUBLANES - heads), (0, 0)))
    kernel = kernel.reshape(channels, blocks, SUBLANES, -1).transpose(1, 3, 2, 0)
    return kernel.reshape(blocks, -1, channels)
