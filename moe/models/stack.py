"""Blocks in periods: equal blocks share one stacked set of weights and run as loops.

Letters: P periods, n dense blocks of one kind in a period, B batch, L length, D model width.

A stack with one sparse block in four holds two trees of weights, `dense` with leaves [P, 3, ..] and
`sparse` with leaves [P, ..]: an outer loop over periods and an inner one over the dense blocks. One
tree of [P, 4, ..] would be sliced inside the loop, which copies weights. Dense blocks after the
sparse one of their period are a third tree, `tail`. A stack that ends inside of a period has the
rest in trees of its own, `rest_dense` and so on, of one period. Where `extra_ffn_blocks` lists the
extra dense layers, a period ends at each of them as at each sparse block; equal neighbours are one
loop, and others have trees of their own, `part1_dense` and so on. Each block is recomputed in the
backward pass on its own: recomputing whole periods would hold the attention logits of all their
blocks at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.layers.attention import shared
from moe.layers.attention_bias import AttentionBias, RelativeBias
from moe.layers.dropout import dropout, split_key
from moe.layers.norm import RMSNorm
from moe.layers.sparse import EXPERT_WEIGHTS, SparseOutput, Trace, evaluation_key
from moe.models.architecture import Architecture, Section, is_sparse
from moe.models.block import Aux, Block, Context
from moe.models.stacked import Stacked, Step, fold, member, stack
from trainlib.model.layer import Layer
from trainlib.sharding.constrain import constrain, platform

MOST_WRITTEN_OUT = 8  # blocks of a stack
Handed = tuple[jax.Array, jax.Array | None]  # residual stream, and `Context.times` where it counts


class Stack(Layer):
    """An encoder or a decoder: relative bias, blocks, final norm.

    Args:
      config: the model.
      name: "encoder" or "decoder".
      rngs: see `trainlib.model.weights.declare`.
    """

    def __init__(self, config: Architecture, name: str, *, rngs: nnx.Rngs | None = None):
        self.config = config
        self.causal = name == "decoder"
        cross = self.causal and config.kind == "encoder_decoder"
        self.bias = RelativeBias(
            config.num_heads,
            bidirectional=not self.causal,
            init_scale=config.init_scale,
            buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
            rngs=rngs,
        )
        self.sections, self.routing = config.sections(name), config.stack_routing(name)
        for section in self.sections:
            for tree, numbers in section.numbers().items():
                routing, extra = self.routing if is_sparse(tree) else None, section.has_extra(tree)
                block = Block(config, routing, extra=extra, causal=self.causal, cross=cross)
                axes = ("period",) if is_sparse(tree) else ("period", "layer")
                setattr(self, tree, stack(block, numbers.shape, axes, rngs))
        self.norm = RMSNorm(config.d_model, config.norm_scale, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        source: jax.Array | None = None,
        source_segments: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        trace: Trace = False,
    ) -> tuple[jax.Array, dict[str, Aux]]:
        """Runs all blocks.

        Args:
          x: [B, L, D] embedded tokens.
          segments: int32 [B, L], 0 at padding.
          source: [B, K, D] output of the encoder, for a decoder with cross-attention; of B * C
            sequences, C answers to each input one after the other, those of the B inputs.
          source_segments: int32 [B, K].
          key: for dropout, noise and random policies in training; None draws nothing, and is
            refused where training needs draws.
          train: training or evaluation, which has no dropout and no noise.
          trace: see `SparseFFN`.

        Returns:
          ([B, L, D], tree -> what its blocks report, stacked [P, ...] or [P, n, ...]).
        """
        first_key, last_key, blocks_key = split_key(key if train else None, 3)
        context = self._context(x, segments, source, source_segments)

        def step(block: Block, handed: Handed, number: jax.Array) -> tuple[Handed, Aux]:
            x, times = handed
            seen = dataclasses.replace(context, times=times)
            own_key = self._block_key(blocks_key, number, train)
            x, report = block(x, seen, own_key, train=train, trace=trace)
            return (x, report.pop("times", times)), report

        x = dropout(x, self.config.dropout, first_key)
        remat = (self.config.decoder_remat if self.causal else "") or self.config.remat
        (x, _), aux = self._fold((x, self.no_times(x)), step, remat=remat)
        return dropout(self.norm(x), self.config.dropout, last_key), aux

    def no_times(self, x: jax.Array) -> jax.Array | None:
        """`Context.times` of tokens x [B, L, D] before the first block: int32 [B, L], or None."""
        counts = self.config.router_history and self.routing is not None
        return jnp.zeros(x.shape[:2], jnp.int32) if counts else None

    def blocks(self) -> tuple[tuple[Block, int | None], ...]:
        """The blocks one by one, in their order, with slices of the stacked weights; of a sparse
        block the weights of experts stay stacks of all periods, and beside it stands the number of
        its own.
        """

        def stays(path: tuple[str, ...]) -> bool:
            return path[0] == "experts" and path[1] in EXPERT_WEIGHTS

        found = {}
        for tree, numbers in self.config.trees("decoder" if self.causal else "encoder").items():
            for index in np.ndindex(numbers.shape):
                block = member(getattr(self, tree), index, stays)
                found[numbers[index]] = block, index[0] if is_sparse(tree) else None
        return tuple(found[number] for number in sorted(found))

    def rebalance(self, report: SparseOutput) -> None:
        """Moves the balance biases of all routers, see `SparseFFN.rebalance`.

        Args:
          report: of the sparse blocks in their order, leaves [P, ..], as in
            `ModelOutput.routers`.
        """
        if self.routing is None:
            return
        done = 0
        for section in self.sections:
            for tree, numbers in section.numbers().items():
                if is_sparse(tree):
                    of = slice(done, done + len(numbers))
                    part = jax.tree.map(lambda x, of=of: x[of], report)
                    getattr(self, tree).experts.rebalance(part)
                    done = of.stop

    def _context(
        self,
        x: jax.Array,
        segments: jax.Array,
        source: jax.Array | None,
        source_segments: jax.Array | None,
    ) -> Context:
        # Masks are made where attention reads them, so that segments travel and not their pairs.
        own = constrain(segments, "layer_batch", None)
        query = self._heads_of(x)
        source_bias = None
        if source is not None and source_segments is not None:
            others = constrain(source_segments, "layer_batch", None)
            inputs = others.shape[0]
            queries = own.reshape(inputs, -1)  # of C answers to an input, see `Block`
            rules = AttentionBias.of(None, queries, others)
            per_input = self._heads_of(x.reshape(inputs, -1, x.shape[-1]))
            source_bias = shared(rules, per_input, self._heads_of(source))
        rules = AttentionBias.of(self.bias, own, causal=self.causal)
        return Context(
            bias=shared(rules, query, query),
            valid=segments > 0,
            source=source,
            source_bias=source_bias,
            words=None if self.config.router_input == "hidden" else x,
        )

    def _heads_of(self, x: jax.Array) -> jax.ShapeDtypeStruct:
        """Shape and type of what attention makes of x [B, L, D]: [B, L, N, H]."""
        heads = self.config.num_heads, self.config.head_dim
        return jax.ShapeDtypeStruct((*x.shape[:2], *heads), x.dtype)

    def _block_key(self, key: jax.Array | None, number: jax.Array, train: bool) -> jax.Array | None:
        """The key of a block, from its number in the stack."""
        if not train:
            return evaluation_key(self.routing, number)
        return None if key is None else jax.random.fold_in(key, number)

    def _fold(self, x: Any, step: Step, *, remat: str) -> tuple[Any, dict[str, Aux]]:
        """`for block in blocks: x, report = step(block, x, number)`.

        Args:
          x: what the blocks hand on.
          step: see `fold`; `number` is that of the block in the stack, an int32 scalar.
          remat: see `fold`.

        Returns:
          (x, tree -> reports, stacked as its weights are).
        """
        reports = {}
        for section in self.sections:
            pieces = {
                tree: (
                    Stacked.of(getattr(self, tree)),
                    jnp.asarray(numbers, jnp.int32),
                )
                for tree, numbers in section.numbers().items()
            }
            loops = self.config.scan_layers and not _written_out(section)
            x, report = fold(x, step, pieces, single=is_sparse, scan=loops, remat=remat)
            reports |= report
        return x, reports


def _written_out(section: Section) -> bool:
    """Whether the blocks of a section follow one another in the program, loops or not.

    What a loop keeps for its backward pass it writes into stacks of all turns, which a CPU zeroes,
    fills and reads slice by slice: a tenth of the step of a small model. A few blocks compile as
    fast without.
    """
    return platform() == "cpu" and section.blocks <= MOST_WRITTEN_OUT
