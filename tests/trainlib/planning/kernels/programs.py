"""Pallas kernels of several kinds, to count."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BF16, F32, I32 = jnp.bfloat16, jnp.float32, jnp.int32


def shape(*sizes: int, dtype: Any = BF16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _product(a, b, out):
    out[...] = jnp.dot(a[...], b[...], preferred_element_type=F32).astype(out.dtype)


def product(a, b, tile: int = 512):
    """[M, K] times [K, N] in square tiles of the result; K is whole."""
    (rows, depth), columns = a.shape, b.shape[1]
    return pl.pallas_call(
        _product,
        grid=(pl.cdiv(rows, tile), pl.cdiv(columns, tile)),
        in_specs=[
            pl.BlockSpec((tile, depth), lambda i, j: (i, 0)),
            pl.BlockSpec((depth, tile), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((tile, tile), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((rows, columns), BF16),
        name="product",
    )(a, b)


def _accumulated(a, b, out, sums):
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)

    sums[...] += jnp.dot(a[...], b[...], preferred_element_type=F32)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        out[...] = sums[...].astype(out.dtype)


def accumulated(a, b):
    """[4096, 1024] times [1024, 4096], summed over steps of 256 while the result's block stays."""
    return pl.pallas_call(
        _accumulated,
        grid=(8, 8, 4),
        in_specs=[
            pl.BlockSpec((512, 256), lambda i, j, k: (i, k)),
            pl.BlockSpec((256, 512), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((512, 512), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((4096, 4096), BF16),
        scratch_shapes=[pltpu.VMEM((512, 512), F32)],
        name="accumulated",
    )(a, b)


def looped(x, turns: int | None = 32):
    """16 steps, in each a loop; of as many turns as the step says where `turns` is None."""

    def kernel(x, out):
        high = pl.program_id(0) + 1 if turns is None else turns
        zero = jnp.zeros(out.shape, out.dtype)
        out[...] = jax.lax.fori_loop(
            0, high, lambda i, y: y + jnp.tanh(x[pl.ds(i * 8, 8), :]), zero
        )

    return pl.pallas_call(
        kernel,
        grid=(16,),
        in_specs=[pl.BlockSpec((512, 128), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((128, 128), F32),
        name="looped",
    )(x)


def _copied(x, out, buffer, done):
    copy = pltpu.make_async_copy(x.at[pl.ds(0, 128)], buffer, done)
    copy.start()
    copy.wait()
    out[...] = 2 * buffer[...]


def copied(x):
    """A kernel that fetches [128, 128] by itself."""
    return pl.pallas_call(
        _copied,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=pl.BlockSpec(memory_space=pltpu.VMEM),
        out_shape=jax.ShapeDtypeStruct((128, 128), F32),
        scratch_shapes=[pltpu.VMEM((128, 128), F32), pltpu.SemaphoreType.DMA],
        name="copied",
    )(x)


def chosen(index, turns, x):
    """Blocks that prefetched scalars name, and a loop as long as another one says."""

    def kernel(index, turns, x, out):
        del index
        out[...] = jax.lax.fori_loop(0, turns[0], lambda _, value: jnp.sin(value), x[...])

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(index.shape[0],),
            in_specs=[pl.BlockSpec((128, 128), lambda i, index, turns: (index[i], 0))],
            out_specs=pl.BlockSpec((128, 128), lambda i, index, turns: (i, 0)),
        ),
        out_shape=jax.ShapeDtypeStruct((128 * index.shape[0], 128), F32),
        name="chosen",
    )(index, turns, x)


def config(function: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """What the only custom call of a function is configured with; nothing is compiled."""
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",))
    found = re.search(r'@tpu_custom_call.*?backend_config = "((?:[^"\\]|\\.)*)"', lowered.as_text())
    assert found
    text = re.sub(r"\\([0-9A-F]{2})", lambda code: chr(int(code[1], 16)), found[1])
    return json.loads(text.replace('\\"', '"'))
