"""One transformer block, dense or sparse.

Letters: B batch, L length, K length of the encoder's output, N heads, D model width. Each sublayer
is x + dropout(layer(norm(x))):

    dense encoder   self-attention, FFN             sparse encoder  self-attention, experts, FFN
    dense decoder   self-, cross-attention, FFN     sparse decoder  self-, cross-, experts, FFN

The FFN beside the experts (ST-MoE, arXiv 2202.08906, appendix C) stands after them, before them, or
not at all.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moe.layers.attention import Attention
from moe.layers.ffn import FeedForward
from moe.layers.norm import RMSNorm
from moe.layers.sparse import SparseFFN
from moe.layers.weights import dropout, split, to_rows
from moe.models.architecture import Architecture
from moe.routing.config import RoutingConfig
from trainlib.sharding.constrain import constrain

Aux = dict[str, Any]  # what a block reports beside its output; stacks add leading dimensions
Kept = dict[str, jax.Array]  # keys and values that decoding keeps of a block, [B, L, N, H]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What all blocks of a stack see beside the residual stream.

    Attributes:
      bias: float32 [1, N, L, L] relative position bias.
      mask: bool [B, 1, L, L] of self-attention.
      valid: bool [B, L], False at padding: such tokens are routed nowhere and counted nowhere.
      source: [B, K, D] encoder output, or None.
      source_mask: bool [B, 1, L, K], or None.
      words: [B, L, D] embeddings of the words, where routers see them, or None.
    """

    bias: jax.Array
    mask: jax.Array
    valid: jax.Array
    source: jax.Array | None = None
    source_mask: jax.Array | None = None
    words: jax.Array | None = None


class Block(nnx.Module):
    """[B, L, D] -> [B, L, D].

    Args:
      config: the model.
      routing: of the experts; None makes the block dense.
      causal: the block is in a decoder.
      cross: the block reads the encoder's output.
    """

    def __init__(
        self, config: Architecture, routing: RoutingConfig | None, *, causal: bool, cross: bool
    ):
        self.config, self.sparse, self.cross = config, routing is not None, cross
        self.attention_norm, self.attention = self._norm(), self._attention()
        if cross:
            self.cross_norm, self.cross_attention = self._norm(), self._attention()
        if routing is not None:
            self.experts_norm = self._norm()
            self.experts = SparseFFN(
                config.d_model,
                config.d_ff,
                routing,
                activation=config.activation,
                expert_bias=config.expert_bias,
                init_scale=config.init_scale,
                router_init_scale=config.router_init_scale or None,
                expert_dropout=config.expert_dropout,
                causal=causal,
            )
        self.dense = routing is None or config.extra_ffn != "none"
        if self.dense:
            self.ffn_norm = self._norm()
            self.ffn = FeedForward(
                config.d_model,
                config.d_ff,
                activation=config.activation,
                init_scale=config.init_scale,
                dropout_rate=config.dropout,
                reduce=config.reduce_dtype,
            )

    def _norm(self) -> RMSNorm:
        return RMSNorm(self.config.d_model, self.config.norm_scale)

    def _attention(self) -> Attention:
        config = self.config
        return Attention(
            config.d_model,
            config.num_heads,
            config.head_dim,
            init_scale=config.init_scale,
            dropout_rate=config.dropout,
            reduce=config.reduce_dtype,
        )

    def _router_input(self, x: jax.Array, context: Context) -> jax.Array | None:
        if context.words is None:
            return None
        return context.words if self.config.router_input == "word" else x + context.words

    def _add(self, x: jax.Array, branch: jax.Array, key: jax.Array | None) -> jax.Array:
        branch = dropout(branch, self.config.dropout, key)
        scale = self.config.residual_scale
        return x + (branch if scale == 1 else (scale * branch).astype(x.dtype))

    def begin(self, source: jax.Array | None, rows: int, length: int, dtype) -> Kept:
        """What decoding keeps of this block: room for the keys and values of `length` tokens of
        `rows` sequences, and those of the encoder's output `source` [B, K, D].
        """
        shape = (rows, length, self.config.num_heads, self.config.head_dim)
        empty = constrain(jnp.zeros(shape, dtype), "rows", None, "head", None)
        kept = {"key": empty, "value": empty}
        if self.cross:
            assert source is not None
            keys, values = self.cross_attention.keys_values(to_rows(source))
            kept |= {"cross_key": keys, "cross_value": values}
        return kept

    def step(
        self,
        x: jax.Array,
        kept: Kept,
        position: jax.Array,
        context: Context,
        draws: jax.Array | None = None,
    ) -> tuple[jax.Array, Kept]:
        """One more token of each sequence, without dropout or noise.

        Args:
          x: [B, 1, D].
          kept: of the tokens before, see `begin`.
          position: int32 scalar, number of tokens before.
          context: of this token; `mask` and `bias` span the length that was kept room for.
          draws: key of a policy that is random in evaluation too, or None.
        """
        y = to_rows(self.attention_norm(x))
        new = self.attention.keys_values(y)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(kept[name], value, position, axis=1)
            for name, value in zip(("key", "value"), new, strict=True)
        )
        x = self._add(x, self.attention.read(y, keys, values, context.bias, context.mask)[0], None)
        if self.cross:
            y = to_rows(self.cross_norm(x))
            ready = kept["cross_key"], kept["cross_value"]
            x = self._add(
                x, self.cross_attention.read(y, *ready, None, context.source_mask)[0], None
            )
        x, _ = self._feed_forward(x, context, [None, None, draws, None], train=False)
        return x, kept | {"key": keys, "value": values}

    def __call__(
        self, x: jax.Array, context: Context, key: jax.Array | None, *, train: bool
    ) -> tuple[jax.Array, Aux]:
        """Runs the block; `key` None switches all randomness off. In evaluation only a policy that
        is random there too draws.
        """
        keys = split(key, 8) if train else [*(None,) * 6, key, None]
        aux: Aux = {}
        y = self.attention_norm(x)
        y, total = self.attention(y, y, context.bias, context.mask, keys[0])
        aux["attention_z"] = _mean_square(total, context.valid)
        x = self._add(x, y, keys[1])
        if self.cross:
            y = self.cross_norm(x)
            y, total = self.cross_attention(y, context.source, None, context.source_mask, keys[2])
            aux["cross_attention_z"] = _mean_square(total, context.valid)
            x = self._add(x, y, keys[3])
        x, report = self._feed_forward(x, context, keys[4:], train=train)
        return x, aux | report

    def _feed_forward(
        self, x: jax.Array, context: Context, keys: list[jax.Array | None], *, train: bool
    ) -> tuple[jax.Array, Aux]:
        aux: Aux = {}
        before = self.config.extra_ffn == "before"
        if self.dense and before:
            x = self._add(x, self.ffn(self.ffn_norm(x), keys[0]), keys[1])
        if self.sparse:
            y = self.experts_norm(x)
            y, aux["router"] = self.experts(
                y, context.valid, keys[2], train=train, router_input=self._router_input(y, context)
            )
            x = self._add(x, y, keys[3])
        if self.dense and not before:
            x = self._add(x, self.ffn(self.ffn_norm(x), keys[0]), keys[1])
        return x, aux


def _mean_square(total: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over real queries and heads of logsumexp^2, total [B, N, L]: the z-loss of attention."""
    weights = valid[:, None, :].astype(jnp.float32)
    count = jnp.maximum(jnp.sum(weights) * total.shape[1], 1.0)
    return jnp.sum(weights * jnp.square(total)) / count
