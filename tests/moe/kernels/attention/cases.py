"""Attention of random sizes by the kernels, interpreted, and by the plain form."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe.kernels.attention import flash_attention, relative_vector
from moe.kernels.attention.dropout import keep_mask
from moe.kernels.buckets import relative_buckets
from moe.layers.attention import attend
from moe.layers.attention_bias import relative_bias, segment_mask

BUCKETS = 32


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and options; `segments` is "none", "packed", "padded" or "empty"."""

    queries: int
    keys: int
    batch: int = 1
    heads: int = 1
    width: int = 128
    bias: bool = True
    causal: bool = False
    segments: str = "packed"
    rate: float = 0.0
    max_distance: int = 128
    scale: float = 0.3
    block: int | None = 128
    dtype: jnp.dtype = jnp.float32
    seed: int = 0


def segments_of(case: Case, length: int, draw: np.random.Generator) -> np.ndarray:
    """int32 [B, length]: sorted numbers and padding, of which "empty" leaves nothing else."""
    numbers = np.sort(draw.integers(1, 4, size=(case.batch, length)), axis=1)
    if case.segments == "padded":
        numbers = np.ones_like(numbers)
    real = draw.integers(0, length + 1, size=(case.batch, 1))
    if case.segments == "empty":
        real[0] = 0
    return np.where(np.arange(length) < real, numbers, 0).astype(np.int32)


class Arrays:
    """Operands of a case, cotangents that are zero where a query sees no key, and both forms.

    Attributes:
      inputs: query, key, value [B, .., N, H] and, with a bias, its table [R, N].
      sees: bool [B, Q], whether a query sees a key.
    """

    def __init__(self, case: Case):
        self.case = case
        draw = np.random.default_rng(case.seed)
        shape = case.batch, case.heads, case.width
        batch, heads, width = shape
        query, key, value = (
            jnp.asarray(draw.normal(size=(batch, length, heads, width)), case.dtype)
            for length in (case.queries, case.keys, case.keys)
        )
        table = jnp.asarray(draw.normal(size=(BUCKETS, heads)), jnp.float32)
        scale = jnp.asarray(case.scale, case.dtype)
        self.inputs = (query * scale, key * scale, value) + ((table,) if case.bias else ())
        self.segments = None
        if case.segments != "none":
            own = segments_of(case, case.queries, draw)
            self.segments = (
                own,
                own if case.queries == case.keys else segments_of(case, case.keys, draw),
            )
        self.mask = self._mask()
        seen = self.mask
        seen = np.ones((batch, case.queries), bool) if seen is None else np.any(seen[:, 0], axis=-1)
        self.sees = np.broadcast_to(seen, (batch, case.queries))
        dout = draw.normal(size=query.shape) * self.sees[:, :, None, None]
        dlogsumexp = draw.normal(size=(batch, heads, case.queries)) * self.sees[:, None]
        self.cotangents = jnp.asarray(dout, case.dtype), jnp.asarray(dlogsumexp, jnp.float32)
        self.seeds = jax.random.bits(jax.random.key(case.seed), (batch, heads))

    def _mask(self) -> np.ndarray | None:
        """bool [B or 1, 1, Q, K]."""
        case = self.case
        if self.segments is not None:
            return np.asarray(segment_mask(*map(jnp.asarray, self.segments), causal=case.causal))
        if case.causal:
            return (np.arange(case.queries)[:, None] >= np.arange(case.keys))[None, None]
        return None

    def kernels(self, query, key, value, table=None):
        case = self.case
        bias = None
        if table is not None:
            bias = relative_vector(
                table, bidirectional=not case.causal, max_distance=case.max_distance
            )
        segments = (None, None) if self.segments is None else map(jnp.asarray, self.segments)
        return flash_attention(
            query,
            key,
            value,
            bias=bias,
            **dict(zip(("query_segments", "key_segments"), segments, strict=True)),
            causal=case.causal,
            dropout_rate=case.rate,
            dropout_seeds=self.seeds if case.rate else None,
            interpret=True,
            block=case.block,
        )

    def plain(self, query, key, value, table=None):
        case = self.case
        bias, drop = None, None
        if table is not None:
            bias = relative_bias(
                table,
                case.queries,
                case.keys,
                bidirectional=not case.causal,
                max_distance=case.max_distance,
            )
        if case.rate:
            keep = keep_mask(self.seeds, case.queries, case.keys, case.rate)
            drop = functools.partial(dropped, keep=keep, rate=case.rate)

        mask = None if self.mask is None else jnp.asarray(self.mask)
        return attend(query, key, value, bias, mask, drop=drop)

    def compared(self, wide: bool = False):
        """Names, what the kernels give and what the plain form does: out and logsumexp where a
        query sees a key, and the gradients; with `wide` the plain form is computed in float32.
        """

        def run(form, inputs, cotangents):
            (out, logsumexp), pull = jax.vjp(form, *inputs)
            sees = jnp.asarray(self.sees)
            seen = out * sees[:, :, None, None], logsumexp * sees[:, None]
            return *seen, *pull(cotangents)

        inputs, cotangents = self.inputs, self.cotangents
        got = jax.jit(run, static_argnums=0)(self.kernels, inputs, cotangents)
        if wide:
            inputs, cotangents = jax.tree.map(lambda x: x.astype(jnp.float32), (inputs, cotangents))
        want = jax.jit(run, static_argnums=0)(self.plain, inputs, cotangents)
        names = ("out", "logsumexp", "dquery", "dkey", "dvalue", "dtable")
        return list(zip(names, got, want, strict=False))


def random_case(draw: np.random.Generator) -> Case:
    """Up to 420 tokens in blocks of 128, so that there are blocks near the diagonal and far."""
    choose = draw.choice
    queries = int(draw.integers(1, 421))
    causal = bool(draw.integers(2))
    width = int(choose([8, 32, 48, 64, 128, 256]))
    return Case(
        queries=queries,
        keys=queries if draw.integers(2) else int(draw.integers(1, 421)),
        batch=int(draw.integers(1, 3)),
        heads=int(draw.integers(1, 6 if width < 64 else 3)),
        width=width,
        bias=bool(draw.integers(3)),
        causal=causal,
        segments=str(choose(["none", "packed", "padded", "empty"])),
        rate=float(choose([0.0, 0.0, 0.4])),
        max_distance=int(choose([20, 128, 300])),
        seed=int(draw.integers(2**31)),
    )


def in_float64(arrays: Arrays) -> list[np.ndarray]:
    """What `Arrays.compared` names, of one sequence and head without dropout, in float64."""
    query, key, value, table = (np.asarray(x, np.float64) for x in arrays.inputs)
    query, key, value = query[0, :, 0], key[0, :, 0], value[0, :, 0]
    dout, dlogsumexp = (np.asarray(x, np.float64) for x in arrays.cotangents)
    dout, dlogsumexp = dout[0, :, 0], dlogsumexp[0, 0]
    offsets = np.arange(len(key)) - np.arange(len(query))[:, None]
    buckets = relative_buckets(offsets, bidirectional=not arrays.case.causal)
    logits = query @ key.T + table[:, 0][buckets]
    assert arrays.mask is not None
    logits = np.where(arrays.mask[0, 0], logits, -np.inf)
    sees = arrays.sees[0]
    top = np.max(logits, axis=1, where=arrays.mask[0, 0], initial=-1e9)
    p = np.exp(logits - top[:, None])
    total = np.maximum(p.sum(axis=1), 1e-300)
    p /= total[:, None]
    out = p @ value
    ds = p * (dout @ value.T - np.sum(dout * out, axis=1)[:, None] + dlogsumexp[:, None])
    dtable = np.zeros_like(table[:, 0])
    np.add.at(dtable, buckets, ds)
    results = out, (top + np.log(total)) * sees, ds @ key, ds.T @ query, p.T @ dout
    out, logsumexp, dquery, dkey, dvalue = results
    wide = [x[None, :, None] for x in (out, dquery, dkey, dvalue)]
    return [wide[0], logsumexp[None, None], *wide[1:], dtable[:, None]]


def dropped(p, *, keep, rate):
    return jnp.where(keep, p / (1 - rate), 0).astype(p.dtype)


def differs(got, want) -> float:
    """The largest difference, over the largest number that was to come out or 1."""
    got, want = np.float32(got), np.float32(want)
    assert np.all(np.isfinite(got))
    return float(np.max(np.abs(got - want)) / max(np.max(np.abs(want)), 1.0))
