"""Chosen experts on a few tokens, one after the other, in one kernel of a TPU.

Letters: D model width, F hidden width of an expert, P periods, E experts, T tokens, M most experts
that can be chosen.

The grid goes through the experts that were chosen, and in each through parts of its hidden width.
Their numbers are there before the kernel starts, so that the weights of the next part, or of the
next expert, are on their way while one is computed. All tokens meet every chosen expert, which
costs the matrix unit no more than one token does, and are added up with the gate of each. Weights
are rounded in the kernel: left to XLA, all experts are rounded before a loop over some of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from moe.kernels.batched import Weights, hidden
from trainlib.sharding.kernels import core_memory

_LANES, _SUBLANES = 128, 16
_MOST_TOKENS = 256  # with more, products take longer than weights take to arrive
_SHARE = 0.5  # of a core's memory, for the blocks of weights
_MOST_BLOCK = 2**22  # bytes of all blocks of weights of a step, fetched while others are used


def _columns(width: int, hidden_width: int, matrices: int, itemsize: int) -> int:
    """Hidden units of a step; 0: no number fits."""
    most = min(int(_SHARE * core_memory()) // 2, _MOST_BLOCK)
    fitting = [
        columns
        for columns in range(_LANES, hidden_width + 1, _LANES)
        if not hidden_width % columns and matrices * width * columns * itemsize <= most
    ]
    return max(fitting, default=0)


def _columns_of(weights: Weights) -> int:
    _, _, width, hidden_width = weights["up"].shape
    matrices = sum(name != "bias" for name in weights)
    return _columns(width, hidden_width, matrices, weights["up"].dtype.itemsize)


def fits(x: jax.Array, weights: Weights) -> bool:
    """Whether `in_turn` computes these: few tokens, and sizes that tiles divide.

    Args:
      x: [T, D].
      weights: see `in_turn`.
    """
    tokens, width = x.shape
    if not jnp.issubdtype(weights["up"].dtype, jnp.floating):
        return False
    return 0 < tokens <= _MOST_TOKENS and not width % _LANES and bool(_columns_of(weights))


def in_turn(
    x: jax.Array,
    gates: jax.Array,
    experts: jax.Array,
    count: jax.Array,
    weights: Weights,
    period: jax.Array | int,
    bias_form: str,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Each chosen expert on all tokens, added up with their gates in float32.

    Args:
      x: [T, D].
      gates: float32 [M, T], of each chosen expert, 0 for a token that did not choose it.
      experts: int32 [M], the chosen ones; behind them the last of them again.
      count: int32, how many they are.
      weights: of all experts of all periods, [P, E, ..], float32 or in the type of x.
      period: int32 scalar.
      bias_form: see `moe.kernels.batched`.
      interpret: run the kernel step by step on any backend, for tests.

    Returns:
      [T, D] in the type of x.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    tokens, width = x.shape
    rows = -(-tokens // _SUBLANES) * _SUBLANES
    most, columns = len(experts), _columns_of(weights)
    steps = weights["up"].shape[-1] // columns
    names = [name for name in ("gate", "up", "down", "bias") if name in weights]
    stacks = [weights[name][:, :, None] if name == "bias" else weights[name] for name in names]

    def part(i, j, numbers):
        """Of an expert; of what is behind the last one nothing is fetched."""
        return jnp.where(i < numbers[most], j, steps - 1)

    def into(i, j, numbers):
        return numbers[most + 1], numbers[i], 0, part(i, j, numbers)

    def out(i, j, numbers):
        return numbers[most + 1], numbers[i], part(i, j, numbers), 0

    blocks = {
        "gate": pl.BlockSpec((None, None, width, columns), into),
        "up": pl.BlockSpec((None, None, width, columns), into),
        "down": pl.BlockSpec((None, None, columns, width), out),
        "bias": pl.BlockSpec((None, None, 1, columns), into),
    }

    def run(numbers, x_ref, gates_ref, *refs):
        *own, y_ref, sum_ref = refs
        own = dict(zip(names, own, strict=True))
        i, j = pl.program_id(0), pl.program_id(1)

        @pl.when((i == 0) & (j == 0))
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)

        def product(left, name):
            right = own[name][...].astype(left.dtype)
            return jnp.matmul(left, right, preferred_element_type=jnp.float32)

        @pl.when(i < numbers[most])
        def _():
            seen = x_ref[...]
            projected = {
                name: product(seen, name).astype(seen.dtype)
                for name in ("gate", "up")
                if name in own
            }
            bias = own["bias"][...].astype(seen.dtype) if "bias" in own else None
            made = product(hidden(projected, bias, bias_form), "down")
            gate = gates_ref[...]  # [rows, 1]
            # What is not finite in an expert concerns those alone who chose it.
            sum_ref[...] += jnp.where(gate != 0, gate * made, 0)

        @pl.when((i == most - 1) & (j == steps - 1))
        def _():
            y_ref[...] = sum_ref[...].astype(y_ref.dtype)

    numbers = jnp.concatenate([experts, jnp.stack([count, jnp.int32(period)])])
    over = ((0, rows - tokens), (0, 0))
    size = sum(stack[0, 0].size * stack.dtype.itemsize for stack in stacks)
    whole = pl.BlockSpec((rows, width), lambda i, j, numbers: (0, 0))
    y = pl.pallas_call(
        run,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(most, steps),
            in_specs=[
                whole,
                pl.BlockSpec((None, rows, 1), lambda i, j, numbers: (i, 0, 0)),
                *(blocks[name] for name in names),
            ],
            out_specs=whole,
            scratch_shapes=[pltpu.VMEM((rows, width), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((rows, width), x.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"),
            vmem_limit_bytes=int(0.9 * core_memory()),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * most * rows * size // weights["up"].dtype.itemsize,
            transcendentals=most * rows * steps * columns,
            bytes_accessed=most * size,
        ),
        interpret=interpret,
    )(numbers, jnp.pad(x, over), jnp.pad(gates[..., None], ((0, 0), *over)), *stacks)
    return lax.slice_in_dim(y, 0, tokens)
