"""T5 v1.1 as T5X writes it (google-research/t5x: layers, network and losses of `examples/t5`),
in plain flax.linen: the peer of our dense block.

Letters: B batch, Q queries, K keys, N heads, H width of one head, D model width, F hidden width, V
vocabulary. Partitioning by names, decoding and dropout, which is 0 in pre-training, are left out:
they do nothing on one chip. Activations are `dtype`, weights float32.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from moe.kernels.buckets import relative_buckets

KERNEL = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
TABLE = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class LayerNorm(nn.Module):
    """RMSNorm, [..., D] -> [..., D]; the mean square is float32, the scale is in `dtype`."""

    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.asarray(x, jnp.float32)
        mean2 = jnp.mean(jax.lax.square(x), axis=-1, keepdims=True)
        y = jnp.asarray(x * jax.lax.rsqrt(mean2 + 1e-6), self.dtype)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return y * jnp.asarray(scale, self.dtype)


class Dense(nn.Module):
    """A product without bias, [..., D] -> [..., features]; its matrix is stored fused."""

    features: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", KERNEL, (x.shape[-1], self.features), jnp.float32)
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


class MlpBlock(nn.Module):
    """GEGLU, [B, L, D] -> [B, L, D]."""

    d_ff: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nn.gelu(Dense(self.d_ff, self.dtype, name="wi_0")(x))
        up = Dense(self.d_ff, self.dtype, name="wi_1")(x)
        return Dense(x.shape[-1], self.dtype, name="wo")(gate * up)


class RelativePositionBiases(nn.Module):
    """[1, N, Q, K] in `dtype`."""

    num_heads: int
    bidirectional: bool
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, queries: int, keys: int) -> jax.Array:
        offsets = np.arange(keys)[None, :] - np.arange(queries)[:, None]
        buckets = relative_buckets(offsets, bidirectional=self.bidirectional)
        table = self.param("rel_embedding", TABLE, (self.num_heads, 32), jnp.float32)
        table = jnp.asarray(table, self.dtype)
        iota = jax.lax.broadcasted_iota(jnp.int32, (32, 1, 1), 0)
        one_hot = jnp.array(jnp.asarray(buckets)[None] == iota, dtype=self.dtype)
        return jax.lax.dot_general(table, one_hot, (((1,), (0,)), ((), ())))[None]


def mask_bias(queries: jax.Array, keys: jax.Array, causal: bool, dtype: Any) -> jax.Array:
    """Segments int32 [B, Q], [B, K] -> bias [B, 1, Q, K]: 0 where a query sees a key, or -1e10."""
    mask = (queries[:, :, None] == keys[:, None, :]) & (queries[:, :, None] > 0)
    mask &= keys[:, None, :] > 0
    if causal:
        mask &= jnp.arange(queries.shape[1])[:, None] >= jnp.arange(keys.shape[1])[None, :]
    return jax.lax.select(
        mask[:, None],
        jnp.full(mask[:, None].shape, 0.0, dtype),
        jnp.full(mask[:, None].shape, -1e10, dtype),
    )


class MultiHeadDotProductAttention(nn.Module):
    """[B, Q, D], [B, K, D] -> [B, Q, D]; logits float32 as in T5X's `float32_attention_logits`."""

    num_heads: int
    head_dim: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array, bias: jax.Array) -> jax.Array:
        inner = self.num_heads * self.head_dim

        def heads(name: str, x: jax.Array) -> jax.Array:
            y = Dense(inner, self.dtype, name=name)(x)
            return y.reshape(*y.shape[:2], self.num_heads, self.head_dim)

        query, key, value = heads("query", x), heads("key", source), heads("value", source)
        query, key = query.astype(jnp.float32), key.astype(jnp.float32)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) + bias.astype(jnp.float32)
        weights = jax.nn.softmax(logits).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return Dense(x.shape[-1], self.dtype, name="out")(mixed.reshape(*mixed.shape[:2], inner))


class EncoderLayer(nn.Module):
    """[B, L, D] -> [B, L, D]."""

    num_heads: int
    head_dim: int
    d_ff: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        attention = MultiHeadDotProductAttention(self.num_heads, self.head_dim, self.dtype)
        y = LayerNorm(self.dtype, name="pre_attention_layer_norm")(x)
        x = x + attention(y, y, bias)
        return x + MlpBlock(self.d_ff, self.dtype)(LayerNorm(self.dtype, name="pre_mlp")(x))


class DecoderLayer(nn.Module):
    """[B, L, D] and the encoder's [B, K, D] -> [B, L, D]."""

    num_heads: int
    head_dim: int
    d_ff: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(
        self, x: jax.Array, source: jax.Array, bias: jax.Array, cross_bias: jax.Array
    ) -> jax.Array:
        attention = functools.partial(
            MultiHeadDotProductAttention, self.num_heads, self.head_dim, self.dtype
        )
        y = LayerNorm(self.dtype, name="pre_self_attention")(x)
        x = x + attention(name="self_attention")(y, y, bias)
        y = LayerNorm(self.dtype, name="pre_cross_attention")(x)
        x = x + attention(name="cross_attention")(y, source, cross_bias)
        return x + MlpBlock(self.d_ff, self.dtype)(LayerNorm(self.dtype, name="pre_mlp")(x))


class EncoderBlock(nn.Module):
    """A layer and its mask: x [B, L, D], relative bias [1, N, L, L], segments int32 [B, L]."""

    num_heads: int
    head_dim: int
    d_ff: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, segments: jax.Array) -> jax.Array:
        bias = bias + mask_bias(segments, segments, False, self.dtype)
        return EncoderLayer(self.num_heads, self.head_dim, self.d_ff, self.dtype)(x, bias)


class DecoderBlock(nn.Module):
    """A layer and its masks: x [B, L, D], source [B, K, D], relative bias [1, N, L, L]."""

    num_heads: int
    head_dim: int
    d_ff: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(
        self, x: jax.Array, source: jax.Array, bias: jax.Array, own: jax.Array, others: jax.Array
    ) -> jax.Array:
        bias = bias + mask_bias(own, own, True, self.dtype)
        layer = DecoderLayer(self.num_heads, self.head_dim, self.d_ff, self.dtype)
        return layer(x, source, bias, mask_bias(own, others, False, self.dtype))


class Embed(nn.Module):
    """int32 [B, L] -> [B, L, D] in `dtype`, by a product with a one-hot matrix or by indexing."""

    vocab_size: int
    features: int
    one_hot: bool = True
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        init = nn.initializers.normal(1.0)
        table = self.param("embedding", init, (self.vocab_size, self.features), jnp.float32)
        table = jnp.asarray(table, self.dtype)
        if not self.one_hot:
            return table[tokens]
        iota = jax.lax.iota(jnp.int32, self.vocab_size)
        return jnp.dot(jnp.array(tokens[..., None] == iota, dtype=self.dtype), table)


@jax.custom_vjp
def cross_entropy_with_logits(
    logits: jax.Array, targets: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    """Logits and target distributions [..., V] -> (loss with its z-loss, z-loss), both [...]."""
    logits_sum = jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    loss = -jnp.sum(targets * (logits - logits_sum), axis=-1)
    z = z_loss * jax.lax.square(jnp.squeeze(logits_sum, axis=-1))
    return loss + z, z


def _forward(logits: jax.Array, targets: jax.Array, z_loss: float = 0.0) -> Any:
    max_logit = logits.max(axis=-1, keepdims=True)
    shifted = logits - max_logit
    exp_shifted = jnp.exp(shifted)
    sum_exp = jnp.sum(exp_shifted, axis=-1, keepdims=True)
    log_softmax = shifted - jnp.log(sum_exp)
    loss = -jnp.sum(targets * log_softmax, axis=-1)
    log_z = jnp.squeeze(jnp.log(sum_exp) + max_logit, axis=-1)
    z = z_loss * jax.lax.square(log_z)
    residuals = logits, targets, z_loss, exp_shifted, sum_exp, log_softmax, log_z
    return (loss + z, z), residuals


def _backward(residuals: Any, g: Any) -> Any:
    logits, targets, z_loss, exp_shifted, sum_exp, log_softmax, log_z = residuals
    g = jnp.expand_dims(g[0], axis=-1)
    deriv = jnp.expand_dims(1 + 2 * z_loss * log_z, -1) * exp_shifted / sum_exp - targets
    return (
        jnp.asarray(g * deriv, logits.dtype),
        jnp.asarray(-g * log_softmax, targets.dtype),
        jnp.array(0.0),
    )


cross_entropy_with_logits.defvjp(_forward, _backward)


def compute_weighted_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 1e-4,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [B, L, V], targets int32 [B, L], weights [B, L] -> sums of loss, z-loss, weights."""
    words = logits.shape[-1]
    low = label_smoothing / (words - 1)
    one_hot = targets[..., None] == jnp.arange(words).reshape((1,) * targets.ndim + (-1,))
    soft = jax.lax.select(
        one_hot,
        jnp.full(one_hot.shape, 1.0 - label_smoothing),
        jnp.full(one_hot.shape, low),
    ).astype(jnp.float32)
    loss, z = cross_entropy_with_logits(logits, soft, z_loss)
    return jnp.sum(loss * weights), jnp.sum(z * weights), jnp.sum(weights)


class LogitsDense(nn.Module):
    """[B, L, D] -> float32 [B, L, V]: computed in float32, as in T5X."""

    vocab_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Dense(self.vocab_size, jnp.float32, name="logits_dense")(x)


class Loss(nn.Module):
    """The mean loss with its z-loss, and the number of right tokens, of x [B, L, D]."""

    vocab_size: int

    @nn.compact
    def __call__(
        self, x: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits = LogitsDense(self.vocab_size)(x)
        total, _, count = compute_weighted_cross_entropy(logits, targets, weights)
        right = jnp.argmax(logits, axis=-1) == targets
        return total / count, jnp.sum(weights * right)
