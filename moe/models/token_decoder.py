"""A decoder that reads one token of each sequence at a time, with a cache of keys and values.

Letters: B sequences, L most tokens of a sequence, K length of the encoder's output, D model width,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.kernels.attention.blocks import MASKED
from moe.layers.attention_decode import DecodingBias
from moe.layers.embed import Embedding
from moe.layers.sparse import evaluation_key
from moe.models.block import Cache, TokenContext
from moe.models.stack import Stack
from trainlib.sharding.constrain import constrain


class TokenDecoder:
    """The steps of a decoder; see `Transformer.token_decoder`.

    The blocks stand one after the other, each with weights that are arrays of its own: a loop over
    a stack would copy each matrix before its product.

    Args:
      stack: the decoder.
      embedding: of its tokens.
      logits: [B, 1, D] -> float32 [B, 1, V].
      length: L.
    """

    def __init__(
        self,
        stack: Stack,
        embedding: Embedding,
        logits: Callable[[jax.Array], jax.Array],
        length: int,
    ):
        self.stack, self.embedding, self.logits, self.length = stack, embedding, logits, length
        self.dtype = stack.config.dtype
        self.blocks = stack.blocks()
        self.bias = DecodingBias(stack.bias, length)

    def init_cache(self, batch: int, encoded: jax.Array | None = None) -> tuple[Cache, ...]:
        """The cache before the first token: for each block the empty keys and values of its own
        tokens, and those of the encoder's output; see `Block.init_cache`.

        Args:
          batch: B; or B * C, where C copies of each input are decoded, one after the other.
          encoded: [B, K, D] output of the encoder.
        """
        return tuple(
            block.init_cache(encoded, batch, self.length, self.dtype) for block, _ in self.blocks
        )

    @staticmethod
    def carried(cache: tuple[Cache, ...]) -> tuple[Cache, ...]:
        """The cache as a loop is to carry it: of a single sequence without its axis, which `step`
        takes as well (see `moe.layers.attention_decode`).
        """
        if any(leaf.shape[0] > 1 for leaf in jax.tree.leaves(cache)):
            return cache
        return jax.tree.map(lambda leaf: leaf[0], cache)

    def step(
        self,
        tokens: jax.Array,
        cache: tuple[Cache, ...],
        position: jax.Array | int,
        encoder_segments: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Cache, ...]]:
        """Reads one more token of each sequence.

        Args:
          tokens: int32 [B], the tokens at `position` of the decoder's input.
          cache: of the positions before, see `init_cache`.
          position: int32 scalar, or [B] where each sequence is at a place of its own.
          encoder_segments: int32 [B, K], 0 at padding; one segment in each sequence. With C copies
            of each input, those of the inputs.

        Returns:
          (logits float32 [B, V] of what comes next, the cache with these tokens).
        """
        config, position = self.stack.config, jnp.asarray(position, jnp.int32)
        x = self.embedding(tokens[:, None], self.dtype)  # [B, 1, D]
        source_bias = None
        if encoder_segments is not None:
            real = constrain(encoder_segments > 0, "layer_batch", None)[:, None, None]
            source_bias = jnp.where(real, 0.0, MASKED)  # [B, 1, 1, K]
        context = TokenContext(
            bias=self.bias.at(position),
            valid=jnp.ones(x.shape[:2], bool),
            source_bias=source_bias,
            words=None if config.router_input == "hidden" else x,
            times=self.stack.no_times(x),
        )
        written = []
        for number, (block, period) in enumerate(self.blocks):
            # Of sequences at different places the draws are those of the first.
            key = evaluation_key(self.stack.routing, number, position.ravel()[0])
            with jax.named_scope(f"decoder/{number}"):
                x, kept, times = block.decode_step(
                    x, cache[number], position, context, key, period=period
                )
            context = dataclasses.replace(context, times=times)
            written.append(kept)
        return self.logits(self.stack.norm(x))[:, 0], tuple(written)
