"""Self-attention of T5 with its relative bias and segments: 8 sequences, 8 heads of width 128.

Letters: B batch, S tokens, N heads, H width of a head.

Floors: seven products of S x S x 128 a head at the peak of the matrix unit.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from benchmarks.attention.cases import Case, Program, shape, with_gradients

BATCH, HEADS, WIDTH = 8, 8, 128


def core(tokens: int) -> Program:
    """Attention of queries, keys and values [B, S, N, H] and the gradient of the bias table too."""
    from moe.layers.attention import attend, segment_mask
    from moe.layers.attention_bias import RelativeBias
    from trainlib.model.weights import abstract

    spec = abstract(RelativeBias(HEADS, bidirectional=True))
    table = {n: shape(*s.shape, dtype=s.dtype) for n, s in spec.params.items()}

    def attention(q: Any, k: Any, v: Any, table: Any, segments: Any) -> Any:
        bias = spec.bind(table, {})(tokens, tokens)
        return attend(q, k, v, bias, segment_mask(segments, segments))[0]

    operand = shape(BATCH, tokens, HEADS, WIDTH)
    segments = (shape(BATCH, tokens, dtype=jnp.int32),)
    return with_gradients(attention, operand, operand, operand, table, fixed=segments)


def _case(tokens: int, floor: float, goal: float, aim: float) -> Case:
    return Case(
        f"t5/self_{tokens}",
        f"S = {tokens}, segments",
        functools.partial(core, tokens),
        floor={"v5e-1": floor},
        goal=goal,
        aim=aim,
        bytes_goal=2.0,
    )


CASES = [_case(512, 0.15, 0.40, 0.3), _case(2048, 2.44, 3.8, 3.3)]
