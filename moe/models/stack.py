"""Blocks in periods: equal blocks share one stacked set of weights and run as loops.

Letters: P periods, n dense blocks of one kind in a period, B batch, L length, D model width.

A stack with one sparse block in four holds two trees of weights, `dense` with leaves [P, 3, ..] and
`sparse` with leaves [P, ..]: an outer loop over periods and an inner one over the dense blocks. One
tree of [P, 4, ..] would be sliced inside the loop, which copies weights. Dense blocks after the
sparse one of their period are a third tree, `tail`. A stack that ends inside of a period has the
rest in trees of its own, `rest_dense` and so on, of one period. Each block is recomputed in the
backward pass on its own: recomputing whole periods would hold the attention logits of all their
blocks at once.
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
from moe.layers.sparse import evaluation_key
from moe.layers.weights import dropout, split, stack
from moe.models.architecture import Architecture, Section, is_sparse
from moe.models.block import Aux, Block, Context, Kept
from trainlib.model.remat import recomputed
from trainlib.sharding.constrain import constrain


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
            config.num_heads,
            bidirectional=not self.causal,
            init_scale=config.init_scale,
            buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        self.sections, self.routing = config.sections(name), config.stack_routing(name)
        for tree, numbers in config.trees(name).items():
            routing = self.routing if is_sparse(tree) else None
            block = Block(config, routing, causal=self.causal, cross=cross)
            axes = ("period",) if is_sparse(tree) else ("period", "layer")
            setattr(self, tree, stack(block, numbers.shape, axes))
        self.norm = RMSNorm(config.d_model, config.norm_scale)

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
          key: for dropout and noise in training; None switches them off.
          train: training or evaluation, which has no dropout and no noise.

        Returns:
          ([B, L, D], tree -> what its blocks report, stacked [P, ..] or [P, n, ..]).
        """
        first, last, blocks = split(key if train else None, 3)
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

    def begin(
        self, rows: int, length: int, dtype, source: jax.Array | None = None
    ) -> dict[str, Kept]:
        """What decoding keeps: tree -> see `Block.begin`, stacked as the weights of the tree are.

        Args:
          rows: sequences.
          length: most tokens of one of them.
          dtype: of activations.
          source: [B, K, D] output of the encoder, for a decoder with cross-attention.
        """

        def body(graphdef: nnx.GraphDef, section: Section) -> Callable:
            del section

            def begun(_: None, piece: Any) -> tuple[None, Kept]:
                return None, nnx.merge(graphdef, piece[0]).begin(source, rows, length, dtype)

            return begun

        return self._over_blocks(None, body, self._numbers())[1]

    def step(
        self,
        x: jax.Array,
        kept: dict[str, Kept],
        position: jax.Array,
        source_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, Kept]]:
        """Runs all blocks on one more token of each sequence, all of which are at `position`.

        Args:
          x: [B, 1, D] embedded tokens.
          kept: of the tokens before; see `begin`.
          position: int32 scalar, number of tokens before.
          source_mask: bool [B, 1, 1, K], which positions of the encoder's output hold a token.
        """
        length = next(iter(kept.values()))["key"].shape[-3]
        context = Context(
            bias=self.bias.at(position, length),
            mask=(jnp.arange(length) <= position)[None, None, None],
            valid=jnp.ones(x.shape[:2], bool),
            source_mask=source_mask,
            words=None if self.config.router_input == "hidden" else x,
        )

        def body(graphdef: nnx.GraphDef, section: Section) -> Callable:
            del section

            def stepped(x: jax.Array, piece: Any) -> tuple[jax.Array, Kept]:
                weights, (own, number) = piece
                draws = evaluation_key(self.routing, number, position)
                return nnx.merge(graphdef, weights).step(x, own, position, context, draws)

            return stepped

        extras = {tree: (kept[tree], number) for tree, number in self._numbers().items()}
        x, kept = self._over_blocks(x, body, extras)
        return self.norm(x), kept

    def _run(
        self, x: jax.Array, context: Context, key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, dict[str, Aux]]:
        def body(graphdef: nnx.GraphDef, section: Section) -> Callable:
            return self._block(graphdef, section, context, key, train)

        return self._over_blocks(x, body, self._numbers())

    def _numbers(self) -> dict[str, jax.Array]:
        """See `Architecture.trees`."""
        return {
            tree: jnp.asarray(numbers, jnp.int32)
            for section in self.sections
            for tree, numbers in section.numbers().items()
        }

    def _over_blocks(
        self, x: Any, body: Callable[[nnx.GraphDef, Section], Callable], extras: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Runs all blocks in order.

        Args:
          x: what they hand on.
          body: makes the loop body (x, (weights, extra)) -> (x, report) of the blocks of a tree
            of a section.
          extras: tree -> what each block gets beside its weights, stacked as these are.
        """
        reports: dict[str, Any] = {}
        for section in self.sections:
            x, more = self._over_section(x, section, body, extras)
            reports |= more
        return x, reports

    def _over_section(
        self,
        x: Any,
        section: Section,
        body: Callable[[nnx.GraphDef, Section], Callable],
        extras: dict[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        trees = {name: numbers.shape for name, numbers in section.numbers().items()}
        weights, bodies = {}, {}
        for name in trees:
            graphdef, values = nnx.split(getattr(self, name))
            weights[name], bodies[name] = nnx.to_pure_dict(values), body(graphdef, section)

        def period(x: Any, piece: Any) -> tuple[Any, dict[str, Any]]:
            weights, extras = piece
            reports = {}
            for name, (_, *count) in trees.items():
                own = weights[name], extras[name]
                if is_sparse(name):
                    x, reports[name] = bodies[name](x, own)
                else:
                    x, reports[name] = self._loop(bodies[name], x, own, *count)
            return x, reports

        own = {name: extras[name] for name in trees}
        return self._loop(period, x, (weights, own), section.periods)

    def _block(
        self,
        graphdef: nnx.GraphDef,
        section: Section,
        context: Context,
        key: jax.Array | None,
        train: bool,
    ) -> Callable:
        """One block as a loop body: (x, (its weights, its number)) -> (x, what it reports)."""

        def body(x: jax.Array, piece: Any) -> tuple[jax.Array, Aux]:
            weights, number = piece
            if train:
                block_key = None if key is None else jax.random.fold_in(key, number)
            else:
                block_key = evaluation_key(self.routing, number)
            return nnx.merge(graphdef, weights)(x, context, block_key, train=train)

        policy = (self.config.decoder_remat if self.causal else "") or self.config.remat
        in_loop = self.config.scan_layers and section.periods > 1
        return recomputed(body, policy, in_loop=in_loop)

    def _loop(self, body: Callable, x: Any, pieces: Any, length: int) -> tuple:
        if self.config.scan_layers and length > 1:
            return jax.lax.scan(body, x, pieces, length=length)
        reports = []
        for index in range(length):
            x, report = body(x, jax.tree.map(lambda leaf, i=index: leaf[i], pieces))
            reports.append(report)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *reports)
