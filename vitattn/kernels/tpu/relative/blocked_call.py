"""A call of one of the kernels for large maps: operands by name, whole maps of a head a step.

Letters: M maps of one head, H W map, d query/key width a head, e value width a head, L lanes.

All pixels of a head are in the memory of the chip at once, and blocks are looped over inside the
kernel: every operand is read once, every result written once.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from trainlib.sharding.kernels import core_memory
from vitattn.kernels.tpu.relative.blocks import (
    Blocks,
    ones_of_keys,
    stacked_tables,
    starts_of_queries,
)

Array = jax.Array

CONSTANTS = ("ones", "starts", "table", "table_transposed", "dtable")
_LEAST_MEMORY = 16 * 2**20  # that a kernel may take


def constants(b: Blocks, tables: tuple[Array, ...], dtype) -> dict[str, Array]:
    """Operands that all maps share.

    Args:
      b: sizes.
      tables: [2H-1, d] and [2W-1, d], or none.
      dtype: of queries.
    """
    found = {"ones": jnp.asarray(ones_of_keys(b), dtype), "starts": starts_of_queries(b)}
    if tables:
        table = stacked_tables(b, *tables).astype(dtype)
        found |= {"table": table, "table_transposed": table.T}
    return found


def call(
    b: Blocks,
    body: Callable[[dict], None],
    name: str,
    operands: dict[str, Array],
    outputs: dict[str, jax.ShapeDtypeStruct],
    held: dict[str, tuple[tuple[int, ...], jnp.dtype]],
    interpret: bool,
):
    """Runs a kernel once for each map.

    Args:
      b: sizes.
      body: takes the references by name.
      name: of the kernel.
      operands: maps [M, .., HW], of which lanes after the last pixel are read as anything, and
        `constants`.
      outputs: likewise.
      held: shapes and types of scratch.
      interpret: run it step by step on any backend.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    def spec(name: str, x) -> pl.BlockSpec:
        if name in CONSTANTS:
            return pl.BlockSpec(x.shape, lambda m: (0, 0))
        return pl.BlockSpec((None, x.shape[1], b.lanes), lambda m: (m, 0, 0))

    most = max(_LEAST_MEMORY, 2 * b.memory(operands["q"].dtype.itemsize))
    names = (*operands, *outputs, *held)

    def kernel(*refs):
        body(dict(zip(names, refs, strict=True)))

    return pl.pallas_call(
        kernel,
        grid=(operands["q"].shape[0],),
        in_specs=[spec(*item) for item in operands.items()],
        out_specs=[spec(*item) for item in outputs.items()],
        out_shape=list(outputs.values()),
        scratch_shapes=[pltpu.VMEM(*item) for item in held.values()],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=min(most, core_memory())
        ),
        name=name,
        interpret=interpret,
    )(*operands.values())
