"""Attention of T5 with its relative bias and segments, 8 sequences, and what JAX ships beside it.

Letters: B batch, S tokens, N heads, H width of a head.

Operands are [B, S, N*H], as projections write them. Floors: seven products of S x S x H a head at
the peak of the matrix unit, half of them where causality leaves half, heads of 64 in the 128 lanes
that they take at the least. What JAX ships (`jax.experimental.pallas.ops.tpu`) reads [B, N, S, H];
it has no relative bias, no gradient of the logsumexp, and gives NaN for a query that sees no key.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.attention.cases import Case, Program, shape, with_gradients

BATCH, INNER, BUCKETS = 8, 1024, 32


def core(tokens: int, keys: int = 0, *, width: int = 128, causal: bool = False, bias: bool = True):
    """`t5_attention` with segments, and the gradient of the bias table too; `keys` other than 0
    make it cross-attention.
    """
    from moe.layers.attention import t5_attention

    heads = INNER // width

    def attention(q: Any, k: Any, v: Any, *rest: Any) -> Any:
        *table, of_queries, of_keys = rest
        q, k, v = (x.reshape(*x.shape[:2], heads, width) for x in (q, k, v))
        out, _ = t5_attention(
            *(q, k, v),
            bias_table=table[0] if table else None,
            bidirectional=not causal,
            query_segments=of_queries,
            key_segments=of_keys,
            causal=causal,
        )
        return out.reshape(BATCH, tokens, INNER)

    return _program(attention, tokens, keys, [shape(BUCKETS, heads, dtype=jnp.float32)] * bias)


def splash(tokens: int, keys: int = 0, *, causal: bool = False) -> Program:
    """`splash_attention` with segments and heads of 128, in blocks of 512."""
    from jax.experimental.pallas.ops.tpu import splash_attention as module

    heads, size = INNER // 128, (tokens, keys or tokens)
    kind = module.CausalMask if causal else module.FullMask
    blocks = module.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_q_dkv", "block_kv_dkv"), 512),
        use_fused_bwd_kernel=True,
    )

    def attention(q: Any, k: Any, v: Any, of_queries: Any, of_keys: Any) -> Any:
        kernel = module.make_splash_mha_single_device(
            module.MultiHeadMask([kind(size)] * heads), block_sizes=blocks
        )
        q, k, v = (x.reshape(*x.shape[:2], heads, 128).swapaxes(1, 2) for x in (q, k, v))
        out: Any = jax.vmap(kernel)(q, k, v, module.SegmentIds(of_queries, of_keys))
        return out.swapaxes(1, 2).reshape(BATCH, tokens, INNER)

    return _program(attention, tokens, keys, [])


def flash(tokens: int, keys: int = 0, *, causal: bool = False) -> Program:
    """`flash_attention` with segments and heads of 128, in blocks of 512."""
    from jax.experimental.pallas.ops.tpu import flash_attention as module

    names = ("q", "k_major", "k", "q_major_dkv", "k_major_dkv", "k_dkv", "q_dkv")
    names += ("k_major_dq", "k_dq", "q_dq")
    blocks = module.BlockSizes(block_b=1, **{f"block_{name}": 512 for name in names})

    def attention(q: Any, k: Any, v: Any, of_queries: Any, of_keys: Any) -> Any:
        q, k, v = (x.reshape(*x.shape[:2], INNER // 128, 128).swapaxes(1, 2) for x in (q, k, v))
        segments = module.SegmentIds(of_queries, of_keys)
        out = module.flash_attention(
            q, k, v, segment_ids=segments, causal=causal, block_sizes=blocks
        )
        return out.swapaxes(1, 2).reshape(BATCH, tokens, INNER)

    return _program(attention, tokens, keys, [])


def _program(attention: Any, tokens: int, keys: int, more: list) -> Program:
    keys = keys or tokens
    query, key = (shape(BATCH, length, INNER) for length in (tokens, keys))
    segments = [shape(BATCH, length, dtype=jnp.int32) for length in (tokens, keys)]
    return with_gradients(attention, query, key, key, *more, fixed=tuple(segments))


def _case(name: str, what: str, make: Any, floor: float, **goals: Any) -> Case:
    return Case(f"t5/{name}", what, make, floor={"v5e-1": floor}, **goals)


_part = functools.partial
CASES = [
    *(
        _case(f"self_{n}", f"S = {n}, segments", _part(core, n), f, goal=g, aim=a, bytes_goal=2.0)
        for n, f, g, a in ((512, 0.15, 0.40, 0.3), (2048, 2.44, 3.8, 3.3))
    ),
    _case("self_8192", "S = 8,192, segments", _part(core, 8192), 39.1),
    _case("self_512_64", "16 heads of 64, S = 512", _part(core, 512, width=64), 0.31),
    _case("self_2048_64", "16 heads of 64, S = 2,048", _part(core, 2048, width=64), 4.88),
    _case("causal_2048", "causal, bias", _part(core, 2048, causal=True), 1.22),
    _case("cross_512", "512 queries, 2,048 keys", _part(core, 512, 2048, bias=False), 0.61),
    # Without a bias, to compare with.
    _case("plain_2048", "no bias", _part(core, 2048, bias=False), 2.44),
    _case("plain_causal", "causal, no bias", _part(core, 2048, causal=True, bias=False), 1.22),
    _case("splash_2048", "splash_attention", _part(splash, 2048), 2.44),
    _case("splash_causal", "the same, causal", _part(splash, 2048, causal=True), 1.22),
    _case("splash_cross", "512 queries, 2,048 keys", _part(splash, 512, 2048), 0.61),
    _case("flash_2048", "flash_attention of JAX", _part(flash, 2048), 2.44),
    _case("flash_causal", "the same, causal", _part(flash, 2048, causal=True), 1.22),
]
