"""A call of one of the kernels: its grid, the blocks of its operands by name, and its scratch.

Letters: B batch, N heads, Q queries, K keys, W lanes of a block, G heads in them.

The grid goes over columns of heads, sequences, and then blocks of queries and chunks of keys, in
one order or the other. Sequences come after heads, so that tiles of the bias serve all sequences
and their gradients are added up over them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from moe.kernels.attention.blocks import Index, Run, meet
from moe.kernels.attention.plan import Plan
from trainlib.sharding.kernels import core_memory

_LIMIT = 0.9  # of a core's memory that a kernel may take; XLA keeps some
_SCALARS = ("ranges", "seeds", "far")  # in memory for scalars, before the grid starts


@dataclasses.dataclass
class At:
    """Where a step of the grid is.

    Attributes:
      n: column of heads.
      b: sequence.
      i: block of queries.
      chunk: of keys.
      batch: B.
    """

    plan: Plan
    ref: dict
    n: jax.Array
    b: jax.Array
    i: Index
    chunk: Index
    batch: int

    @property
    def first_of_heads(self) -> jax.Array:
        """Whether this is the first step of a column of heads."""
        return (self.b == 0) & (self.i == 0) & (self.chunk == 0)

    @property
    def last_of_heads(self) -> jax.Array:
        """Whether this is the last step of a column of heads."""
        ends = self.i == self.plan.q_blocks - 1, self.chunk == self.plan.chunks - 1
        return (self.b == self.batch - 1) & ends[0] & ends[1]

    def seed(self, g: int) -> jax.Array:
        """Of dropout, for a head of the column."""
        return self.ref["seeds"][self.b * self.plan.heads + self.n * self.plan.shared + g]

    def over_blocks(self, runs: Iterable[Run], body: Callable[[Index, Run], None]) -> None:
        """Calls the body for each block of keys that this block of queries has to see."""
        from jax.experimental import pallas as pl

        for run in runs:

            def block(j, run=run):
                if not self.plan.segments:
                    body(j, run)
                    return
                number = j + self.chunk * self.plan.chunk

                @pl.when(meet(self.plan, self.ref["ranges"], self.b, self.i, number))
                def _():
                    body(j, run)

            run.each(block)


class Call:
    """Collects what a kernel reads, writes and holds, and runs it.

    Args:
      plan: of the call.
      operands: by name:
        query: [B, Q, N*H], and so "out" and "dout".
        key: [B, K, N*H], and so "value".
        query_segments: int32 [B, 1, Q], no negative number; key_segments: int32 [B, 1, K], -1
          where there is no token. Both only with segments.
        near, far: see `near_and_far`; only with tiles.
        per query: "logsumexp" and others, float32 [B, N / G, G, Q].
        ranges: see `segment_ranges`; seeds: int32 [B * N]; as far as they are needed.
      keys_outside: chunks of keys turn more slowly than blocks of queries.
    """

    def __init__(self, plan: Plan, operands: dict[str, jax.Array], *, keys_outside: bool):
        from jax.experimental import pallas as pl

        self.plan, self._operands, self._keys_outside = plan, operands, keys_outside
        self.batch = operands["query"].shape[0]
        self.per_query = (self.batch, plan.head_columns, plan.shared, plan.queries)
        self._inputs: list[str] = []
        self._specs, self._out_specs, self._out_shapes, self._scratch = [], [], [], []
        self._outputs: list[str] = []
        self._held: list[str] = []
        held = plan.chunk * plan.columns

        def spec(shape, place):
            """`place` takes (n, b, i, chunk)."""
            if keys_outside:
                return pl.BlockSpec(shape, lambda n, b, c, i, *_: place(n, b, i, c))
            return pl.BlockSpec(shape, lambda n, b, i, c, *_: place(n, b, i, c))

        near = (2 * plan.aside + 2) * plan.rows
        self._kinds = {
            "query": spec((None, plan.rows, plan.lanes), lambda n, b, i, c: (b, i, n)),
            "key": spec((None, held, plan.lanes), lambda n, b, i, c: (b, c, n)),
            "query_part": spec(
                (None, None, plan.rows, plan.lanes), lambda n, b, i, c: (c, b, i, n)
            ),
            "query_segments": spec((None, 1, plan.rows), lambda n, b, i, c: (b, 0, i)),
            "key_segments": spec((None, 1, held), lambda n, b, i, c: (b, 0, c)),
            "per_query": spec(
                (None, None, plan.shared, plan.rows), lambda n, b, i, c: (b, n, 0, i)
            ),
            "near": spec((plan.shared, 1, near), lambda n, b, i, c: (n, 0, 0)),
            "far_gradient": spec((plan.shared, 16, 128), lambda n, b, i, c: (n, 0, 0)),
        }

    def reads(self, *names: str, kind: str = "") -> None:
        """Takes operands in, those that there are; each has the kind of its name."""
        for name in names:
            if name in self._operands:
                self._inputs.append(name)
                self._specs.append(self._kinds[kind or name])

    def writes(self, name: str, shape: tuple[int, ...], dtype, kind: str) -> None:
        self._outputs.append(name)
        self._out_shapes.append(jax.ShapeDtypeStruct(shape, dtype))
        self._out_specs.append(self._kinds[kind])

    def holds(self, name: str, shape: tuple[int, ...], dtype=jnp.float32) -> None:
        from jax.experimental.pallas import tpu as pltpu

        self._held.append(name)
        self._scratch.append(pltpu.VMEM(shape, dtype))

    def holds_tiles(self, name: str = "tiles") -> None:
        plan = self.plan
        if plan.tiled:
            self.holds(name, (plan.shared * plan.tiles, plan.rows, plan.columns))

    def run(self, body: Callable, name: str, interpret: bool):
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu as pltpu

        plan = self.plan
        scalars = [key for key in _SCALARS if key in self._operands]
        inner = (plan.chunks, plan.q_blocks) if self._keys_outside else (plan.q_blocks, plan.chunks)

        def kernel(*refs):
            ref = dict(
                zip((*scalars, *self._inputs, *self._outputs, *self._held), refs, strict=True)
            )
            # A number where there is one step: what does not happen is then left out.
            turns = [pl.program_id(2 + n) if size > 1 else 0 for n, size in enumerate(inner)]
            i, chunk = reversed(turns) if self._keys_outside else turns
            body(plan, ref, At(plan, ref, pl.program_id(0), pl.program_id(1), i, chunk, self.batch))

        return pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(scalars),
                grid=(plan.head_columns, self.batch, *inner),
                in_specs=self._specs,
                out_specs=self._out_specs,
                scratch_shapes=self._scratch,
            ),
            out_shape=self._out_shapes,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
                vmem_limit_bytes=int(_LIMIT * core_memory()),
            ),
            name=name,
            interpret=interpret,
        )(*(self._operands[key] for key in (*scalars, *self._inputs)))
