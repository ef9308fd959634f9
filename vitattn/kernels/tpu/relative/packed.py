"""2-D relative attention of packed maps on a TPU: channels on sublanes, pixels on lanes.

Letters: B batch, N heads, M = B N maps, G maps of a grid step, H W map, P = HW pixels, L pixels
filled up to lanes, d e depth of keys and values, D E the rows that they take; see `shape`.

    q, k [M, d, P], v [M, e, P] -> [M, e, P]

With the heads' depth of 20 on lanes, six of seven lanes of a map [B, H, W, N, d] would be empty in
memory; with pixels there, 196 of 256 are used. A projection [N d, C] x [C, P] of the pixels of an
image writes this layout by itself. Blocks are filled up to whole registers in the kernel, which
reads nothing of what lies outside of the arrays: callers need no padding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trainlib.errors import InputError
from trainlib.sharding.kernels import core_memory
from vitattn.kernels.tpu.registers import LANES, SUBLANES, filled
from vitattn.kernels.tpu.relative import head
from vitattn.kernels.tpu.relative.blocked import blocked_attention
from vitattn.kernels.tpu.relative.blocks import Blocks, chosen
from vitattn.kernels.tpu.relative.head import Offsets, Positions
from vitattn.kernels.tpu.relative.shape import MOST_PIXELS, Shape
from vitattn.kernels.tpu.relative.tables import packed_tables
from vitattn.kernels.tpu.stages import in_turn

Array = jax.Array

_MAPS = 8  # maps of a grid step: what a step costs by itself is paid once for them
_AHEAD = 1400  # registers of logits of maps in turn; the more, the more is written to VMEM and back
_INTERPRETED = 1  # maps in turn where kernels are interpreted: XLA compiles each of them
_SHARE = 0.75  # of VMEM; the rest is for registers and the program around
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Packing:
    """Sizes of packed maps.

    Attributes:
      height: H.
      width: W.
      key_depth: d.
      value_depth: e.
    """

    height: int
    width: int
    key_depth: int
    value_depth: int

    def pack(self, maps: Array) -> Array:
        """[B, H, W, N, c] -> [B N, c, P]; a pass over HBM, which costs about what the kernel does,
        without a projection that writes packed maps.
        """
        batch, height, width, heads, channels = maps.shape
        return maps.transpose(0, 3, 4, 1, 2).reshape(batch * heads, channels, height * width)

    def unpack(self, packed: Array, heads: int) -> Array:
        """[B N, c, P] -> [B, H, W, N, c]."""
        x = packed.reshape(-1, heads, packed.shape[1], self.height, self.width)
        return x.transpose(0, 3, 4, 1, 2)

    def fits(self, q: Array, k: Array, v: Array) -> bool:
        """Whether the kernels can do such maps, packed or not, on the chip that is traced for."""
        types = {x.dtype for x in (q, k, v)}
        if types not in ({jnp.dtype(jnp.float32)}, {jnp.dtype(jnp.bfloat16)}):
            return False
        # Sizes of a program that is exported may be symbols; maps without pixels have no softmax.
        if not all(isinstance(size, int) and size > 0 for x in (q, k, v) for size in x.shape):
            return False
        return self.at_once(q.dtype) or self.blocks(q.dtype) is not None

    def at_once(self, dtype: Any) -> bool:
        """Whether a kernel holds all logits of a map."""
        shape = Shape(*dataclasses.astuple(self), relative=True)
        return shape.pixels <= MOST_PIXELS and _most_maps(shape, jnp.dtype(dtype).itemsize) > 0

    def blocks(self, dtype: Any, relative: bool = True) -> Blocks | None:
        """The blocks of keys and queries of a map otherwise; None where no kernel can do it."""
        size, depths = (self.height, self.width), (self.key_depth, self.value_depth)
        memory = int(_SHARE * core_memory())
        return chosen(size, *depths, relative, jnp.dtype(dtype).itemsize, memory)


def _memory(shape: Shape, itemsize: int, maps: int) -> int:
    """Bytes of VMEM of the backward pass, which takes the most, with blocks of so many maps."""
    # Blocks are fetched and written while others are computed on.
    rows = itemsize * (4 * shape.key_rows + 4 * shape.value_rows) + 4 * SUBLANES
    blocks = 2 * maps * rows * shape.lanes
    constants = 2 * 4 * (shape.augmented + 2 * SUBLANES) * shape.lanes
    tables = 2 * 4 * 3 * shape.offsets * filled(shape.key_rows, LANES) if shape.relative else 0
    # Rounded probabilities and gradients of logits, and what does not fit into registers.
    logits = 4 * itemsize * shape.keys * shape.lanes
    return blocks + constants + tables + logits


def _most_maps(shape: Shape, itemsize: int) -> int:
    """Maps of a block that fit into VMEM, up to `_MAPS`; 0 if not even one does."""
    most = _SHARE * core_memory()
    sizes = (_MAPS >> n for n in range(_MAPS.bit_length()))
    return next((n for n in sizes if _memory(shape, itemsize, n) <= most), 0)


def packed_relative_attention(
    q: Array,
    k: Array,
    v: Array,
    rel_h: Array | None,
    rel_w: Array | None,
    packing: Packing,
    *,
    scale: float | None = None,
    interpret: bool = False,
) -> Array:
    """`vitattn.kernels.relative.relative_attention_2d` of packed maps, in value and gradients.

    Args:
      q: [M, d, P], not scaled, pixels row by row; float32 or bfloat16, as k and v.
      k: [M, d, P].
      v: [M, e, P].
      rel_h: [2H-1, d], shared by the maps; None together with rel_w for no position term.
      rel_w: [2W-1, d].
      packing: sizes; `Packing.fits` says for which the kernels are made.
      scale: what content and position terms are multiplied by; None is d**-0.5.
      interpret: run the kernels step by step on any backend, for tests.

    Returns:
      [M, e, P] in the type of v; the softmax is float32 whatever the inputs are. Gradients of the
      tables are summed over all maps in float32.

    Raises:
      InputError: a map that does not fit into the memory of the core.
    """
    sizes = (packing.height, packing.width, packing.key_depth, packing.value_depth)
    shape = Shape(*sizes, relative=rel_h is not None)
    factor = packing.key_depth**-0.5 if scale is None else scale
    if not packing.at_once(q.dtype):
        tables = () if rel_h is None or rel_w is None else (rel_h, rel_w)
        blocks = packing.blocks(q.dtype, relative=bool(tables))
        if blocks is None:
            raise InputError(f"Maps of {packing} do not fit into the memory of the core.")
        return blocked_attention(q, k, v, tables, blocks, scale=factor, interpret=interpret)
    block = max(1, min(_most_maps(shape, q.dtype.itemsize), q.shape[0]))
    call = _Call(shape, factor, interpret, block)
    table = None
    if rel_h is not None and rel_w is not None:
        table = packed_tables(shape, rel_h, rel_w)
    return _attention(call, q, k, v, table)


@dataclasses.dataclass(frozen=True)
class _Call:
    """What a call has beside arrays."""

    shape: Shape
    scale: float
    interpret: bool
    block: int  # maps of a grid step


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call: _Call, q: Array, k: Array, v: Array, table: Array | None) -> Array:
    """Attention with both tables f32 [R, D] packed into one."""
    return _forward(call, q, k, v, table)[0]


def _forward(call: _Call, q: Array, k: Array, v: Array, table: Array | None):
    out, logsumexp = _forward_call(call, q, k, v, table)
    return out, (q, k, v, table, out, logsumexp)


def _backward(call: _Call, residuals, cotangent: Array):
    q, k, v, table, out, logsumexp = residuals
    return _backward_call(call, table, (q, k, v, out, logsumexp, cotangent))


_attention.defvjp(_forward, _backward)


def _positions(shape: Shape, table: Array | None, dtype: Any) -> Positions:
    places = jnp.asarray(shape.places())
    if table is None:
        return Positions(places, None)
    table = table.astype(dtype)
    return Positions(places, Offsets(jnp.asarray(shape.shifts()), table, table.T))


def _inside(x: Array, rows: int, lanes: int) -> Array:
    """x in float32, with zeros beyond: there a block holds anything."""
    x = x.astype(jnp.float32)
    if x.shape == (rows, lanes):
        return x
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where((row < rows) & (lane < lanes), x, 0.0)


def _read(refs: Any) -> Any:
    """The arrays of a tree of references."""
    return jax.tree.map(lambda ref: ref[...], refs)


def _operands(call: _Call, q: Any, k: Any, v: Any, i: Any) -> tuple[Array, Array, Array]:
    shape = call.shape
    keys = functools.partial(_inside, rows=shape.key_depth, lanes=shape.pixels)
    values = _inside(v[i], shape.value_depth, shape.pixels)
    return keys(q[i]) * call.scale, keys(k[i]), values


def _forward_kernel(call: _Call, maps: int, positions, q, k, v, out, logsumexp) -> None:
    shared = _read(positions)

    def some(numbers: list[Any]) -> None:
        results = in_turn(
            head.forward(call.shape, shared, *_operands(call, q, k, v, i), q.dtype) for i in numbers
        )
        for i, (attended, statistics) in zip(numbers, results, strict=True):
            out[i] = attended.astype(out.dtype)
            logsumexp[i] = statistics

    _for_maps(call, maps, _AHEAD, some)


def _backward_kernel(call: _Call, maps: int, positions, inputs, *gradients) -> None:
    from jax.experimental import pallas as pl

    (q, k, v, out, logsumexp, cotangent), (dq, dk, dv, dtable) = inputs, gradients
    shape, dtype = call.shape, q.dtype
    shared = _read(positions)
    if dtable is not None:

        @pl.when(pl.program_id(0) == 0)
        def _():
            dtable[...] = jnp.zeros_like(dtable)

    def one(i: Any) -> Any:
        values = functools.partial(_inside, rows=shape.value_depth, lanes=shape.pixels)
        given = values(out[i]), _inside(logsumexp[i], 1, shape.pixels), values(cotangent[i])
        return head.backward(shape, shared, *_operands(call, q, k, v, i), *given, dtype)

    def some(numbers: list[Any]) -> None:
        results = in_turn(map(one, numbers))
        for i, of_map in zip(numbers, results, strict=True):
            dq[i] = (of_map.q * call.scale).astype(dtype)
            dk[i, :, : shape.keys] = of_map.k.astype(dtype)
            dv[i, :, : shape.keys] = of_map.v.astype(dtype)
        if dtable is not None:
            dtable[...] += functools.reduce(jnp.add, [of_map.table for of_map in results])

    _for_maps(call, maps, _AHEAD // 2, some)


def _for_maps(call: _Call, maps: int, most: int, some: Callable[[list[Any]], None]) -> None:
    """Runs `some` on maps of the block of this step, so many in turn that their logits, all taken
    together, have up to `most` registers.
    """
    from jax.experimental import pallas as pl

    shape, block = call.shape, call.block
    if call.interpret:
        limit = _INTERPRETED
    else:
        limit = max(1, most // (shape.keys // SUBLANES * shape.lanes // LANES))
    together, count = 1, block
    if maps % block:  # the last block is cut off
        count = jnp.minimum(block, maps - block * pl.program_id(0))
    else:
        together = max(n for n in range(1, limit + 1) if block % n == 0)
        count = block // together

    def body(n: Any, _: None) -> None:
        some([n * together + i for i in range(together)])

    jax.lax.fori_loop(0, count, body, None)


def _specs(call: _Call) -> Any:
    """Block of so many rows of the maps of a step."""
    from jax.experimental import pallas as pl

    return lambda rows: pl.BlockSpec((call.block, rows, call.shape.lanes), lambda i: (i, 0, 0))


def _whole(array: Any) -> Any:
    """The block of something that all steps share."""
    from jax.experimental import pallas as pl

    return pl.BlockSpec(array.shape, lambda i: (0,) * array.ndim)


def _options(call: _Call, q: Array, name: str) -> dict[str, Any]:
    from jax.experimental.pallas import tpu as pltpu

    maps, itemsize = q.shape[0], q.dtype.itemsize
    need = _memory(call.shape, itemsize, call.block)
    return {
        "grid": (-(-maps // call.block),),
        "interpret": call.interpret,
        "name": name,
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=max(2 * need, 16 * _MIB)
        ),
    }


def _forward_call(call: _Call, q: Array, k: Array, v: Array, table: Array | None):
    """[M, e, P] and logsumexp f32 [M, 1, P]."""
    from jax.experimental import pallas as pl

    shape, maps = call.shape, q.shape[0]
    positions, of = _positions(shape, table, q.dtype), _specs(call)
    keys, values = of(shape.key_rows), of(shape.value_rows)
    return pl.pallas_call(
        functools.partial(_forward_kernel, call, maps),
        in_specs=[jax.tree.map(_whole, positions), keys, keys, values],
        out_specs=[values, of(1)],
        out_shape=[
            jax.ShapeDtypeStruct(v.shape, v.dtype),
            jax.ShapeDtypeStruct((maps, 1, shape.pixels), jnp.float32),
        ],
        **_options(call, q, "relative_attention_forward"),
    )(positions, q, k, v)


def _backward_call(call: _Call, table: Array | None, inputs: tuple[Array, ...]):
    """Gradients of q, k, v and of the packed table."""
    from jax.experimental import pallas as pl

    shape, q = call.shape, inputs[0]
    positions, of = _positions(shape, table, q.dtype), _specs(call)
    keys, values = of(shape.key_rows), of(shape.value_rows)
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs[:3]]
    whole = None if table is None else jax.ShapeDtypeStruct(table.shape, jnp.float32)
    return pl.pallas_call(
        functools.partial(_backward_kernel, call, q.shape[0]),
        in_specs=[
            jax.tree.map(_whole, positions),
            (keys, keys, values, values, of(1), values),
        ],
        out_specs=(keys, keys, values, None if whole is None else _whole(whole)),
        out_shape=(*results, whole),
        **_options(call, q, "relative_attention_backward"),
    )(positions, inputs)
