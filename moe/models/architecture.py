"""What defines a model, as data: one frozen dataclass, checked when it is built."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection
from typing import Annotated

import numpy as np

from moe.kernels.activation import ACTIVATIONS
from moe.kernels.batched import BIASES
from moe.kernels.buckets import BUCKETS, MAX_DISTANCE
from moe.layers.product import REDUCE
from moe.models.tuned import Tuned
from moe.routing.config import RoutingConfig
from trainlib.errors import ConfigError
from trainlib.keys import brief, check_fields, choice, fit, number, whole
from trainlib.model.remat import POLICIES

KINDS = ("encoder_decoder", "encoder", "decoder")
EXTRA_FFN = ("none", "before", "after")
ROUTER_INPUTS = ("hidden", "word", "both")
SPARSE_STACKS = ("all", "encoder", "decoder")
DTYPES = ("float32", "bfloat16")
MOST_BUCKETS, MOST_DISTANCE = 2**16, 2**31 - 1  # offsets are int32
MOST_BLOCKS = 1000

Width = Annotated[int, whole(1, 2**24)]
Blocks = Annotated[int, whole(1, MOST_BLOCKS, also={0: "none, where `kind` has no such stack"})]
Places = tuple[Annotated[int, whole(0, MOST_BLOCKS - 1)], ...]

TREES = ("dense", "sparse", "tail")  # in the order in which a period runs them


def is_sparse(tree: str) -> bool:
    """Whether the blocks of a tree have experts."""
    return tree.endswith("sparse")


@dataclasses.dataclass(frozen=True)
class Section:
    """Equal periods of a stack, which run as one loop.

    Attributes:
      prefix: of the names of its trees.
      first: number of its first block.
      periods: P.
      counts: blocks of each of `TREES` in a period.
      extra: which of `TREES` has an extra dense layer in its blocks; "": none.
    """

    prefix: str
    first: int
    periods: int
    counts: tuple[int, int, int]
    extra: str = ""

    def has_extra(self, tree: str) -> bool:
        """Whether the blocks of one of its trees have an extra dense layer."""
        return bool(self.extra) and tree == self.prefix + self.extra

    @property
    def blocks(self) -> int:
        """Blocks of all periods."""
        return self.periods * sum(self.counts)

    def numbers(self) -> dict[str, np.ndarray]:
        """See `Architecture.trees`."""
        starts = self.first + sum(self.counts) * np.arange(self.periods)
        numbers, position = {}, 0
        for name, count in zip(TREES, self.counts, strict=True):
            if count:
                inside = position if is_sparse(name) else position + np.arange(count)
                numbers[self.prefix + name] = np.add.outer(starts, inside)
            position += count
        return numbers


def _cut(blocks: int, sparse: Collection[int], extra: Collection[int]) -> tuple[Section, ...]:
    """A stack whose extra layers stand anywhere: a period ends with each block that has experts or
    an extra layer, and equal neighbours are one section.
    """
    periods, first = [], 0
    for end in sorted({*sparse, *extra, blocks - 1}):
        last = "sparse" if end in sparse else "tail" if end in extra else "dense"
        plain = end - first + (last == "dense")
        counts = plain, int(last == "sparse"), int(last == "tail")
        periods.append((counts, last if end in extra else ""))
        first = end + 1
    sections, first = [], 0
    for part, ((counts, last), equal) in enumerate(itertools.groupby(periods)):
        prefix = f"part{part}_" if part else ""
        sections.append(Section(prefix, first, len(list(equal)), counts, last))
        first += sections[-1].blocks
    return tuple(sections)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Everything that defines the weights and the arithmetic of a model, as a frozen dataclass.

    Example:
      >>> config = moe.Architecture(d_model=256, routing=moe.RoutingConfig(num_experts=8))
      >>> model = moe.Transformer(config, rngs=nnx.Rngs(0))

    Attributes:
      kind: "encoder_decoder", "encoder" or "decoder".
      vocab_size: words, padded to a multiple of 128.
      d_model: width of the residual stream.
      d_ff: hidden width of feed-forward layers and, without `expert_d_ff`, of each expert.
      expert_d_ff: hidden width of each expert, where it is another one; 0: `d_ff`. Fine-grained
        experts (arXiv 2401.06066) are m times as many and as narrow; see `fine_grained`.
      shared_experts: experts of the same width that every token goes to beside those that it is
        routed to, as one dense layer.
      num_heads: attention heads.
      head_dim: width of one head (d_kv of T5).
      encoder_blocks: blocks of the encoder.
      decoder_blocks: blocks of the decoder.
      relative_attention_num_buckets: size of the table of relative positions, at least 4.
      relative_attention_max_distance: distance from which on all keys share the last bucket; more
        than half of the buckets.
      activation: "geglu" (three matrices) or "relu" (two).
      routing: of the sparse blocks; None makes every block dense.
      decoder_routing: of the sparse blocks of a decoder, where it is another one; None: `routing`,
        without what would rank tokens against later ones.
      sparse_stacks: which stacks have sparse blocks: "all", "encoder" or "decoder".
      sparse_period: every how many blocks one is sparse.
      decoder_sparse_period: the same for a decoder beside an encoder; 0: as `sparse_period`.
      sparse_offset: which block of a period is sparse, from 0; -1 is the last. A stack of shorter
        periods has its last.
      partial_period: True lets a stack end inside of a period.
      extra_ffn: dense feed-forward layer beside the experts: "none", "before" or "after" them.
      extra_ffn_blocks: numbers, from 0, of the blocks of each stack that have such an extra layer,
        ascending; empty: those with experts. A block without experts has it after its own (ST-MoE,
        arXiv 2202.08906, appendix C: in a dense model, or at random places).
      decoder_extra_ffn_blocks: the same for a decoder beside an encoder; empty: as
        `extra_ffn_blocks`.
      expert_bias: bias of the experts' hidden vectors: "none", "additive" or "multiplicative".
      expert_dropout: of the experts' hidden vectors, beside `dropout`.
      router_init_scale: s of the router's initialiser; 0 takes `init_scale`.
      router_input: what the router sees: "hidden" (the layer's input), "word" (the word embedding)
        or "both", their sum.
      router_input_gradient: whether the router's gradient reaches the word embedding that it sees;
        False stops it there (ST-MoE, arXiv 2202.08906, appendix C, tried both).
      router_history: the router also sees a learned vector of how many sparse blocks before took
        the token; without gain in the paper (appendix J).
      expert_embedding: a learned vector of each expert is added to its output, and one of its own
        to a token that no expert took; without gain in the paper (appendix J).
      tie_word_embeddings: logits from the input table instead of a matrix of their own.
      norm_scale: learned scale in every RMSNorm.
      init_scale: s of the initialiser sqrt(s / fan-in).
      dropout: of residual branches, embeddings, attention and hidden units.
      residual_scale: factor of every residual branch.
      dtype: of activations, "bfloat16" or "float32"; weights are stored in float32.
      reduce_dtype: type in which gradients of dense matrices are added up over devices: "float32",
        or "bfloat16" for half the traffic.
      remat: what of a block is saved for the backward pass, the rest is computed again: "none" (all
        is saved), "dots", "minimal", "offload", "exchange" or "full" (see `trainlib.model.remat`).
      decoder_remat: the same for the decoder alone; "": as `remat`.
      scan_layers: run equal blocks as a loop (compiles once) instead of one after the other; on a
        CPU a stack of few blocks runs one after the other all the same, which is faster there.
      tuned: how a fine-tuning run stores it, where that is another way.
    """

    kind: Annotated[str, choice(*KINDS)] = "encoder_decoder"
    vocab_size: Annotated[int, whole(1)] = 32128
    d_model: Width = 768
    d_ff: Width = 2048
    expert_d_ff: Annotated[int, whole(1, 2**24, also={0: "d_ff"})] = 0
    shared_experts: Annotated[int, whole(0, 2**10)] = 0
    num_heads: Width = 12
    head_dim: Width = 64
    encoder_blocks: Blocks = 12
    decoder_blocks: Blocks = 12
    relative_attention_num_buckets: Annotated[int, whole(4, MOST_BUCKETS)] = BUCKETS
    relative_attention_max_distance: Annotated[int, whole(1)] = MAX_DISTANCE
    activation: Annotated[str, choice(*ACTIVATIONS)] = "geglu"
    routing: RoutingConfig | None = None
    decoder_routing: RoutingConfig | None = None
    sparse_stacks: Annotated[str, choice(*SPARSE_STACKS)] = "all"
    sparse_period: Annotated[int, whole(1, MOST_BLOCKS)] = 4
    decoder_sparse_period: Annotated[int, whole(1, MOST_BLOCKS, also={0: "sparse_period"})] = 0
    sparse_offset: Annotated[int, whole(0, also={-1: "the last"})] = -1
    partial_period: bool = False
    extra_ffn: Annotated[str, choice(*EXTRA_FFN)] = "after"
    extra_ffn_blocks: Places = ()
    decoder_extra_ffn_blocks: Places = ()
    expert_bias: Annotated[str, choice(*BIASES)] = "none"
    expert_dropout: Annotated[float, number(0, below=1)] = 0.0
    router_init_scale: Annotated[float, number(above=0, also={0: "init_scale"})] = 0.0
    router_input: Annotated[str, choice(*ROUTER_INPUTS)] = "hidden"
    router_input_gradient: bool = True
    router_history: bool = False
    expert_embedding: bool = False
    tie_word_embeddings: bool = False
    norm_scale: bool = True
    init_scale: Annotated[float, number(above=0)] = 0.1
    dropout: Annotated[float, number(0, below=1)] = 0.0
    residual_scale: float = 1.0
    dtype: Annotated[str, choice(*DTYPES)] = "bfloat16"
    reduce_dtype: Annotated[str, choice(*REDUCE)] = "float32"
    remat: Annotated[str, choice(*POLICIES)] = "full"
    decoder_remat: Annotated[str, choice("", *POLICIES)] = ""
    scan_layers: bool = True
    tuned: Tuned | None = None

    def __post_init__(self):
        check_fields(self, "model")
        for key in self.stacks.values():
            fit(f"model.{key}", getattr(self, key), whole(1, MOST_BLOCKS))
        self._check_positions()
        if not self.router_input_gradient and self.router_input == "hidden":
            raise ConfigError(
                "model.router_input_gradient=False stops the gradient at the word embedding, which "
                "routers do not see with model.router_input='hidden'. Use 'word' or 'both'."
            )
        if self.routing is not None:
            self._check_periods()
            if self.kind == "decoder":
                self.routing.check_causal()
        self._check_extra()

    def _check_positions(self) -> None:
        """A decoder has half of its buckets for single distances, an encoder a quarter a side; the
        logarithm between these and the largest distance must have room.
        """
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        if not buckets // 2 < distance <= MOST_DISTANCE:
            raise ConfigError(
                f"model.relative_attention_max_distance={distance} is outside {buckets // 2 + 1} "
                f"to {MOST_DISTANCE:,}: half of model.relative_attention_num_buckets={buckets} "
                f"stand for single distances, and the others for larger ones. T5 has "
                f"{MAX_DISTANCE}."
            )

    def _check_periods(self) -> None:
        sparse = [stack for stack in self.stacks if self._is_sparse(stack)]
        if not sparse:
            raise ConfigError(
                f"model.sparse_stacks={self.sparse_stacks} leaves model.kind={self.kind} without "
                "a sparse block. Use all, or routing.num_experts=0 for a dense model."
            )
        longest, offset = max(map(self._period, sparse)), self.sparse_offset
        if not -1 <= offset < longest:
            raise ConfigError(
                f"model.sparse_offset={offset} is outside a period of {longest} blocks: use 0 to "
                f"{longest - 1}, or -1 for the last."
            )
        for stack in sparse:
            self._check_whole(self.stacks[stack], self._period(stack))

    def _check_whole(self, key: str, period: int) -> None:
        blocks = getattr(self, key)
        if blocks % period and not (self.partial_period and blocks > period):
            fits = sorted({max(blocks // period, 1) * period, (blocks // period + 1) * period})
            apart = key == "decoder_blocks" and self.decoder_sparse_period
            name = "decoder_sparse_period" if apart else "sparse_period"
            cut = ", or model.partial_period=True" if blocks > period else ""
            raise ConfigError(
                f"model.{key}={blocks} is no whole number of periods of model.{name}={period} "
                f"blocks. Nearest: {' or '.join(map(str, fits))}{cut}."
            )

    def _check_extra(self) -> None:
        for key in ("extra_ffn_blocks", "decoder_extra_ffn_blocks"):
            places = tuple(getattr(self, key))
            object.__setattr__(self, key, places)  # a list of a caller's has no hash
            if places and self.extra_ffn == "none":
                raise ConfigError(
                    f"model.{key} says where extra layers stand, and model.extra_ffn=none makes "
                    "none. Use extra_ffn=after or before, or leave the list empty."
                )
            if list(places) != sorted(set(places)):
                raise ConfigError(
                    f"model.{key}={brief(places)} is to name each block once, in their order: "
                    f"{', '.join(map(str, sorted(set(places))))}."
                )
        if self.decoder_extra_ffn_blocks and self.kind != "encoder_decoder":
            raise ConfigError(
                "model.decoder_extra_ffn_blocks is that of a decoder beside an encoder, and "
                f"model.kind={self.kind} is one stack. Use model.extra_ffn_blocks."
            )
        for stack, key in self.stacks.items():
            blocks, places = getattr(self, key), self._extra_places(stack)
            if places and places[-1] >= blocks:
                apart = stack == "decoder" and "encoder" in self.stacks
                own = apart and bool(self.decoder_extra_ffn_blocks)
                name = "decoder_extra_ffn_blocks" if own else "extra_ffn_blocks"
                way = ", or list those of the decoder in model.decoder_extra_ffn_blocks"
                raise ConfigError(
                    f"model.{name}: block {places[-1]} is outside the {stack}, whose "
                    f"model.{key}={blocks} blocks count from 0. Use 0 to {blocks - 1}"
                    f"{way if apart and not own else ''}."
                )

    def _extra_places(self, stack: str) -> tuple[int, ...]:
        """The blocks with an extra layer where they are listed."""
        own = self.decoder_extra_ffn_blocks if stack == "decoder" else ()
        return own or self.extra_ffn_blocks

    @property
    def expert_width(self) -> int:
        """Hidden width of one expert."""
        return self.expert_d_ff or self.d_ff

    def _is_sparse(self, stack: str) -> bool:
        return self.routing is not None and self.sparse_stacks in ("all", stack)

    def _period(self, stack: str) -> int:
        """Blocks of a period of a sparse stack."""
        if stack == "decoder" and "encoder" in self.stacks and self.decoder_sparse_period:
            return self.decoder_sparse_period
        return self.sparse_period

    def stack_routing(self, stack: str) -> RoutingConfig | None:
        """The router of a stack, None in a dense one: a decoder's never ranks tokens against later
        ones, whatever the encoder's does.
        """
        if self.routing is None or not self._is_sparse(stack):
            return None
        if stack == "encoder":
            return self.routing
        routing = self.decoder_routing or self.routing
        return dataclasses.replace(routing, batch_prioritized=False, router="tokens_choose")

    @property
    def stacks(self) -> dict[str, str]:
        """Stack -> the field that holds its number of blocks."""
        names = ("encoder", "decoder") if self.kind == "encoder_decoder" else (self.kind,)
        return {name: f"{name}_blocks" for name in names}

    def sparse_blocks(self, stack: str) -> tuple[int, ...]:
        """Numbers of the sparse blocks of a stack, from 0."""
        trees = self.trees(stack).items()
        return tuple(int(n) for tree, numbers in trees if is_sparse(tree) for n in numbers)

    def extra_blocks(self, stack: str) -> tuple[int, ...]:
        """Numbers of the blocks of a stack that have an extra dense layer, from 0."""
        if self.extra_ffn == "none":
            return ()
        return self._extra_places(stack) or self.sparse_blocks(stack)

    def history_length(self, stack: str) -> int:
        """Rows of the table of `router_history` in a stack: its sparse blocks; 0 without it."""
        return len(self.sparse_blocks(stack)) if self.router_history else 0

    @property
    def all_sparse_blocks(self) -> dict[str, tuple[int, ...]]:
        """Stack -> numbers of its sparse blocks, from 0."""
        return {stack: self.sparse_blocks(stack) for stack in self.stacks}

    def periods(self, stack: str) -> tuple[int, int, int, int]:
        """(periods, dense blocks before, sparse blocks, dense blocks after) in each whole period.

        A dense stack is one period.
        """
        blocks = getattr(self, self.stacks[stack])
        if not self._is_sparse(stack):
            return 1, blocks, 0, 0
        period = self._period(stack)
        before = period - 1 if self.sparse_offset < 0 else min(self.sparse_offset, period - 1)
        return blocks // period, before, 1, period - 1 - before

    def sections(self, stack: str) -> tuple[Section, ...]:
        """The whole periods of a stack, and the rest where it ends inside of one; where extra
        layers are listed, what they and the experts cut it into.
        """
        regular, places = self._regular(stack), self._extra_places(stack)
        if not places:
            return regular
        trees = {k: v for part in regular for k, v in part.numbers().items()}
        sparse = {int(n) for tree, v in trees.items() if is_sparse(tree) for n in v}
        return _cut(getattr(self, self.stacks[stack]), sparse, places)

    def _regular(self, stack: str) -> tuple[Section, ...]:
        blocks = getattr(self, self.stacks[stack])
        periods, before, sparse, after = self.periods(stack)
        extra = "" if self.extra_ffn == "none" else "sparse"
        whole = Section("", 0, periods, (before, sparse, after), extra)
        rest = blocks - whole.blocks
        if not rest:
            return (whole,)
        cut = min(rest, before), int(rest > before), max(rest - before - 1, 0)
        return whole, Section("rest_", whole.blocks, 1, cut, extra)

    def trees(self, stack: str) -> dict[str, np.ndarray]:
        """Tree of weights of a stack -> numbers of its blocks, stacked as they are: [P] of sparse
        blocks, [P, n] of dense ones. Four blocks in one period are
        {"dense": [[0, 1, 2]], "sparse": [3]}.
        """
        return {k: v for part in self.sections(stack) for k, v in part.numbers().items()}
