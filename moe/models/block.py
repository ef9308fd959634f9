"""One transformer block, dense or sparse.

Letters: B batch, L length, K length of the encoder's output, N heads, H width of one head, D model
width. Each sublayer is x + dropout(layer(norm(x))):

    dense encoder   self-attention, FFN             sparse encoder  self-attention, experts, FFN
    dense decoder   self-, cross-attention, FFN     sparse decoder  self-, cross-, experts, FFN

The FFN beside the experts (ST-MoE, arXiv 2202.08906, appendix C) stands after them, before them, or
not at all. A dense block may have a second one, after its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from moe.layers.attention import Attention, Bias
from moe.layers.attention_decode import attend_own, attend_source, empty_cache, source_cache
from moe.layers.dropout import dropout, split_key
from moe.layers.ffn import FeedForward
from moe.layers.norm import RMSNorm
from moe.layers.residual import to_layer
from moe.layers.sparse import SparseFFN, Trace
from moe.models.architecture import Architecture
from moe.routing.config import RoutingConfig
from trainlib.model.layer import Layer

Aux = dict[str, Any]  # what a block reports beside its output; stacks add leading dimensions
OWN = "key", "value"  # names of what a cache holds of the decoder's own tokens
Cache = dict[str, jax.Array]  # keys and values of a block, see `Block.init_cache`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What all blocks of a stack see beside the residual stream.

    Attributes:
      bias: what self-attention adds to its logits: relative positions, segments, causality.
      valid: bool [B, L], False at padding: such tokens are routed nowhere and counted nowhere.
      source: [B, K, D] encoder output, or None.
      source_bias: what cross-attention adds to its logits: segments.
      words: [B, L, D] embeddings of the words, where routers see them, or None.
      times: int32 [B, L], how many sparse blocks before took a token, where routers see that, or
        None.
    """

    bias: Bias
    valid: jax.Array
    source: jax.Array | None = None
    source_bias: Bias = None
    words: jax.Array | None = None
    times: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenContext:
    """The same for one token of each sequence, in decoding.

    Attributes:
      bias: float32 [1 or B, N, 1, L], see `moe.layers.attention_decode.DecodingBias`.
      valid: bool [B, 1].
      source_bias: float32 [B, 1, 1, K] of cross-attention, or None.
      words: [B, 1, D], see `Context`.
      times: int32 [B, 1], see `Context`.
    """

    bias: jax.Array
    valid: jax.Array
    source_bias: jax.Array | None = None
    words: jax.Array | None = None
    times: jax.Array | None = None


class Block(Layer):
    """[B, L, D] -> [B, L, D].

    Args:
      config: the model.
      routing: of the experts; None makes the block dense.
      extra: an extra dense layer: beside the experts, as `config.extra_ffn` says, or after the
        layer of a dense block.
      causal: the block is in a decoder.
      cross: the block reads the encoder's output.
      rngs: see `trainlib.model.weights.declare`.
    """

    def __init__(
        self,
        config: Architecture,
        routing: RoutingConfig | None = None,
        *,
        extra: bool = False,
        causal: bool = False,
        cross: bool = False,
        rngs: nnx.Rngs | None = None,
    ):
        self.config, self.sparse, self.cross = config, routing is not None, cross
        self.attention_norm, self.attention = self._norm(rngs), self._attention(rngs)
        if cross:
            self.cross_norm, self.cross_attention = self._norm(rngs), self._attention(rngs)
        if routing is not None:
            self.experts_norm = self._norm(rngs)
            self.experts = SparseFFN(
                config.d_model,
                config.expert_width,
                routing,
                activation=config.activation,
                expert_bias=config.expert_bias,
                init_scale=config.init_scale,
                router_init_scale=config.router_init_scale or None,
                expert_dropout=config.expert_dropout,
                shared_experts=config.shared_experts,
                reduce=config.reduce_dtype,
                router_history=config.history_length("decoder" if causal else "encoder"),
                expert_embedding=config.expert_embedding,
                causal=causal,
                rngs=rngs,
            )
        self.dense = routing is None or extra
        if self.dense:
            self.ffn_norm, self.ffn = self._norm(rngs), self._ffn(rngs)
        self.second = routing is None and extra
        if self.second:
            self.extra_ffn_norm, self.extra_ffn = self._norm(rngs), self._ffn(rngs)

    def _norm(self, rngs: nnx.Rngs | None) -> RMSNorm:
        return RMSNorm(self.config.d_model, self.config.norm_scale, rngs=rngs)

    def _ffn(self, rngs: nnx.Rngs | None) -> FeedForward:
        config = self.config
        return FeedForward(
            config.d_model,
            config.d_ff,
            activation=config.activation,
            init_scale=config.init_scale,
            dropout_rate=config.dropout,
            reduce=config.reduce_dtype,
            rngs=rngs,
        )

    def _attention(self, rngs: nnx.Rngs | None) -> Attention:
        config = self.config
        return Attention(
            config.d_model,
            config.num_heads,
            config.head_dim,
            init_scale=config.init_scale,
            dropout_rate=config.dropout,
            reduce=config.reduce_dtype,
            rngs=rngs,
        )

    def _router_input(self, x: jax.Array, context: Context | TokenContext) -> jax.Array | None:
        if context.words is None:
            return None
        words = context.words
        if not self.config.router_input_gradient:
            words = jax.lax.stop_gradient(words)
        return words if self.config.router_input == "word" else x + words

    def _add(self, x: jax.Array, branch: jax.Array, key: jax.Array | None) -> jax.Array:
        branch = dropout(branch, self.config.dropout, key)
        scale = self.config.residual_scale
        return x + (branch if scale == 1 else (scale * branch).astype(x.dtype))

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        key: jax.Array | None = None,
        *,
        train: bool = False,
        trace: Trace = False,
    ) -> tuple[jax.Array, Aux]:
        """Runs the block on all tokens at once.

        Args:
          x: [B, L, D].
          context: of these tokens.
          key: for dropout, noise and random policies. None draws nothing, and is refused where
            training needs draws. In evaluation only a policy that is random there too draws.
          train: training or evaluation.
          trace: see `SparseFFN`.

        Returns:
          ([B, L, D], "attention_z" and "cross_attention_z", float32 scalars, "router", the
          `SparseOutput` of the experts, and "times", those of the context and of these experts, as
          far as the block has them).
        """
        keys = split_key(key, 8) if train else [*(None,) * 6, key, None]
        aux: Aux = {}
        y, normaliser = self.attention(
            self.attention_norm(x), bias=context.bias, dropout_key=keys[0]
        )
        aux["attention_z"] = _mean_square(normaliser, context.valid)
        x = self._add(x, y, keys[1])
        if self.cross:
            if context.source is None:  # to attention, None means self-attention
                raise ValueError("A decoder with cross-attention needs the output of the encoder.")
            # [B * C, L, D] with C answers to each input are queries of the same keys.
            inputs = context.source.shape[0]
            y, normaliser = self.cross_attention(
                self.cross_norm(x).reshape(inputs, -1, x.shape[-1]),
                context.source,
                bias=context.source_bias,
                dropout_key=keys[2],
            )
            valid = context.valid.reshape(inputs, -1)
            aux["cross_attention_z"] = _mean_square(normaliser, valid)
            x = self._add(x, y.reshape(x.shape), keys[3])
        x, report = self._feed_forward(x, context, keys[4:], train=train, trace=trace)
        return x, aux | report

    def init_cache(
        self, source: jax.Array | None, batch: int, length: int, dtype: DTypeLike
    ) -> Cache:
        """The cache before the first token: empty keys and values for the decoder's own tokens, and
        those of the encoder's output.

        Args:
          source: [B, K, D] output of the encoder, which a block with cross-attention reads.
          batch: B, or B * C with C copies of each input.
          length: L, most tokens of a sequence.
          dtype: of activations.

        Returns:
          "key" [batch, N, H, L], "value" [batch, N, L, H], "cross_key" [B, N, H, K] and
          "cross_value" [B, N, K, H].
        """
        cache: Cache = dict(
            zip(OWN, empty_cache(self.attention, batch, length, dtype), strict=True)
        )
        if self.cross:
            assert source is not None
            keys, values = source_cache(self.cross_attention, to_layer(source))
            cache |= {"cross_key": keys, "cross_value": values}
        return cache

    def decode_step(
        self,
        x: jax.Array,
        cache: Cache,
        position: jax.Array,
        context: TokenContext,
        key: jax.Array | None = None,
        *,
        period: int | None = None,
    ) -> tuple[jax.Array, Cache, jax.Array | None]:
        """One more token of each sequence, without dropout or noise.

        Args:
          x: [B, 1, D].
          cache: of the tokens before, see `init_cache`.
          position: int32 scalar or [B], number of tokens before.
          context: of this token.
          key: of a policy that is random in evaluation too, or None.
          period: whose experts to take, where `experts` holds those of all periods of the stack,
            [P, E, ..]; None: it holds those of this block alone.

        Returns:
          ([B, 1, D], the cache with this token, `times` of the context after this block).
        """
        y, *own = attend_own(
            self.attention,
            to_layer(self.attention_norm(x)),
            cache["key"],
            cache["value"],
            position,
            context.bias,
        )
        x = self._add(x, y, None)
        if self.cross:
            y = attend_source(
                self.cross_attention,
                to_layer(self.cross_norm(x)),
                cache["cross_key"],
                cache["cross_value"],
                context.source_bias,
            )
            x = self._add(x, y, None)
        keys = [None, None, key, None]
        x, report = self._feed_forward(x, context, keys, train=False, period=period)
        times = report.get("times", context.times)
        return x, cache | dict(zip(OWN, own, strict=True)), times

    def _feed_forward(
        self,
        x: jax.Array,
        context: Context | TokenContext,
        keys: list[jax.Array | None],
        *,
        train: bool,
        period: int | None = None,
        trace: Trace = False,
    ) -> tuple[jax.Array, Aux]:
        """The dense layer and the experts, or a second dense layer, in their order; `keys` are
        those of the dense layer, its branch, the experts or second layer and their branch; for
        `period` see `decode_step`.
        """
        aux: Aux = {}
        before = self.config.extra_ffn == "before"
        if self.dense and before:
            x = self._add(x, self.ffn(self.ffn_norm(x), keys[0]), keys[1])
        if self.sparse:
            y = self.experts_norm(x)
            y, router = self.experts(
                y,
                context.valid,
                keys[2],
                train=train,
                router_input=self._router_input(y, context),
                times=context.times,
                period=period,
                trace=trace,
            )
            if context.times is not None and router.taken is not None:
                aux["times"] = context.times + router.taken
            aux["router"] = dataclasses.replace(router, taken=None)
            x = self._add(x, y, keys[3])
        if self.dense and not before:
            x = self._add(x, self.ffn(self.ffn_norm(x), keys[0]), keys[1])
        if self.second:
            key = keys[2] if train else None  # in evaluation it is that of a random policy
            x = self._add(x, self.extra_ffn(self.extra_ffn_norm(x), key), keys[3])
        return x, aux


def _mean_square(normaliser: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of logsumexp^2 [B, N, L] over real queries and heads: the z-loss of attention."""
    weights = valid[:, None, :].astype(jnp.float32)  # [B, 1, L]
    count = jnp.maximum(jnp.sum(weights) * normaliser.shape[1], 1.0)
    return jnp.sum(weights * jnp.square(normaliser)) / count
