"""Blocks in periods: equal blocks share one stacked set of weights and run as loops.

Letters: P periods, n dense blocks of one kind in a period, B batch, L length, D model width.

A stack with one sparse block in four holds two trees of weights, `dense` with leaves [P, 3, ..] and
`sparse` with leaves [P, ..]: an outer loop over periods and an inner one over the dense blocks. One
tree of [P, 4, ..] would be sliced inside the loop, which copies weights. Dense blocks after the
sparse one of their period are a third tree, `tail`. Each block is recomputed in the backward pass
on its own: recomputing whole periods would hold the attention logits of all their blocks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moe.layers.attention import segment_mask
from moe.layers.norm import RMSNorm
from moe.layers.position import RelativeBias
from moe.layers.weights import dropout, split, stack
from moe.models.architecture import Architecture
from moe.models.block import Aux, Block, Context
from trainlib.sharding import constrain

TREES = ("dense", "sparse", "tail")  # in the order in which a period runs them


class Stack(nnx.Module):
    """An encoder or a decoder: relative bias, blocks, final norm.

    Args:
      config: the model.
      name: "encoder" or "decoder".
    """

    def __init__(self, config: Architecture, name: str):
        self.config = config
        self.causal = name == "decoder"
        cross = self.causal and config.kind == "encoder_decoder"
        self.bias = RelativeBias(
            config.heads, bidirectional=not self.causal, init_scale=config.init_scale
        )
        periods, *counts = config.periods(name)
        self.counts = tuple(counts)
        for tree, count in zip(TREES, counts, strict=True):
            if not count:
                continue
            routing = config.stack_routing(name) if tree == "sparse" else None
            block = Block(config, routing, causal=self.causal, cross=cross)
            inner = () if tree == "sparse" else (count,)
            axes = ("period",) if tree == "sparse" else ("period", "layer")
            setattr(self, tree, stack(block, (periods, *inner), axes))
        self.periods = periods
        self.norm = RMSNorm(config.width, config.norm_scale)

    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        source: jax.Array | None = None,
        source_segments: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool,
    ) -> tuple[jax.Array, dict[str, Aux]]:
        """Runs all blocks.

        Args:
          x: [B, L, D] embedded tokens.
          segments: int32 [B, L], 0 at padding.
          source: [B, K, D] output of the encoder, for a decoder with cross-attention.
          source_segments: int32 [B, K].
          key: for dropout and noise; None switches them off.
          train: which capacity factor the experts have.

        Returns:
          ([B, L, D], tree -> what its blocks report, stacked [P, ..] or [P, n, ..]).
        """
        first, last, blocks = split(key, 3)
        # Masks are made where attention reads them, so that segments travel and not their pairs.
        seen = constrain(segments, "rows", None)
        source_mask = None
        if source_segments is not None:
            source_mask = segment_mask(seen, constrain(source_segments, "rows", None))
        context = Context(
            bias=self.bias(x.shape[1], x.shape[1]),
            mask=segment_mask(seen, seen, causal=self.causal),
            valid=segments > 0,
            source=source,
            source_mask=source_mask,
            words=None if self.config.router_input == "hidden" else x,
        )
        x = dropout(x, self.config.dropout, first)
        x, aux = self._run(x, context, blocks, train)
        return dropout(self.norm(x), self.config.dropout, last), aux

    def _run(
        self, x: jax.Array, context: Context, key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, dict[str, Aux]]:
        trees = {name: n for name, n in zip(TREES, self.counts, strict=True) if n}
        weights, blocks = {}, {}
        for name in trees:
            graphdef, values = nnx.split(getattr(self, name))
            weights[name] = nnx.to_pure_dict(values)
            blocks[name] = self._block(graphdef, context, key, train)
        length = sum(self.counts)
        first = {"dense": 0, "sparse": self.counts[0], "tail": self.counts[0] + 1}

        def period(x: jax.Array, piece: Any) -> tuple[jax.Array, dict[str, Aux]]:
            weights, number = piece
            aux = {}
            for name, count in trees.items():
                index = number * length + first[name]
                if name == "sparse":
                    x, aux[name] = blocks[name](x, (weights[name], index))
                else:
                    pieces = weights[name], index + jnp.arange(count)
                    x, aux[name] = self._loop(blocks[name], x, pieces, count)
            return x, aux

        return self._loop(period, x, (weights, jnp.arange(self.periods)), self.periods)

    def _block(
        self, graphdef: nnx.GraphDef, context: Context, key: jax.Array | None, train: bool
    ) -> Callable:
        """One block as a loop body: (x, (its weights, its number)) -> (x, what it reports)."""

        def body(x: jax.Array, piece: Any) -> tuple[jax.Array, Aux]:
            weights, number = piece
            block_key = None if key is None else jax.random.fold_in(key, number)
            return nnx.merge(graphdef, weights)(x, context, block_key, train=train)

        if self.config.remat == "none":
            return body
        # A loop already keeps XLA from merging the two forward passes.
        return jax.checkpoint(body, prevent_cse=not self.config.scan)

    def _loop(self, body: Callable, x: jax.Array, pieces: Any, length: int) -> tuple:
        if self.config.scan and length > 1:
            return jax.lax.scan(body, x, pieces, length=length)
        reports = []
        for index in range(length):
            x, report = body(x, jax.tree.map(lambda leaf, i=index: leaf[i], pieces))
            reports.append(report)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *reports)
