"""2-D relative attention of large maps on a TPU, packed: channels on sublanes, pixels on lanes.

Letters: M maps of one head, H W map, P = HW pixels, d query/key width a head, e value width a head.
"""

from __future__ import annotations

import functools

import jax

from trainlib.model.remat import SCORES, keep
from vitattn.kernels.tpu.relative.blocked_backward import backward
from vitattn.kernels.tpu.relative.blocked_call import constants
from vitattn.kernels.tpu.relative.blocked_forward import forward
from vitattn.kernels.tpu.relative.blocks import Blocks, split_tables

Array = jax.Array


def blocked_attention(
    q: Array,
    k: Array,
    v: Array,
    tables: tuple[Array, ...],
    blocks: Blocks,
    *,
    scale: float,
    interpret: bool = False,
) -> Array:
    """`packed_relative_attention` by blocks of keys, in value and gradients.

    Args:
      q: [M, d, P], not scaled; float32 or bfloat16, as k and v.
      k: [M, d, P].
      v: [M, e, P].
      tables: [2H-1, d] and [2W-1, d], or none.
      blocks: see `chosen`.
      scale: of the logits.
      interpret: run the kernels step by step on any backend, for tests.

    Returns:
      [M, e, P] in the type of v.
    """
    return _attention(q, k, v, tables, blocks, scale, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(
    q: Array,
    k: Array,
    v: Array,
    tables: tuple[Array, ...],
    b: Blocks,
    scale: float,
    interpret: bool,
) -> Array:
    return _forward(q, k, v, tables, b, scale, interpret)[0]


def _forward(q, k, v, tables, b, scale, interpret):
    operands = {"q": q, "k": k, "v": v, **constants(b, tables, q.dtype)}
    operands.pop("table_transposed", None)
    out, logsumexp = forward(b, scale, operands, interpret)
    out, logsumexp = keep(SCORES, out), keep(SCORES, logsumexp)
    return out, (q, k, v, tables, out, logsumexp)


def _backward(b, scale, interpret, residuals, dout):
    q, k, v, tables, out, logsumexp = residuals
    operands = {"q": q, "k": k, "v": v, "out": out, "logsumexp": logsumexp, "dout": dout}
    operands |= constants(b, tables, q.dtype)
    dq, dk, dv, *dtable = backward(b, scale, operands, interpret)
    if not dtable:
        return dq, dk, dv, ()
    dtables = split_tables(b, dtable[0])
    return dq, dk, dv, tuple(g.astype(t.dtype) for g, t in zip(dtables, tables, strict=True))


_attention.defvjp(_forward, _backward)
