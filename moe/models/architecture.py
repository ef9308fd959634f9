"""What defines a model, as data: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import dataclasses

from moe.layers.ffn import ACTIVATIONS
from moe.layers.weights import REDUCE
from moe.routing_config import RoutingConfig
from trainlib.errors import ConfigError, one_of
from trainlib.remat import POLICIES

KINDS = ("encoder_decoder", "encoder", "decoder")
EXTRA_FFN = ("none", "before", "after")
ROUTER_INPUTS = ("hidden", "word", "both")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Everything that defines the weights and the arithmetic of a model.

    Attributes:
      kind: "encoder_decoder", "encoder" or "decoder".
      vocab_size: words, padded to a multiple of 128.
      width: of the residual stream (d_model).
      hidden: of feed-forward layers and experts (d_ff).
      heads: attention heads.
      head_width: width of one head (d_kv).
      encoder_blocks: blocks of the encoder.
      decoder_blocks: blocks of the decoder.
      activation: "geglu" (three matrices) or "relu" (two).
      routing: of the sparse blocks; None makes every block dense.
      sparse_period: every how many blocks one is sparse.
      sparse_offset: which block of a period is sparse, from 0; -1 is the last.
      extra_ffn: dense feed-forward layer beside the experts: "none", "before" or "after" them.
      expert_bias: bias of the experts' hidden vectors: "none", "additive" or "multiplicative".
      expert_dropout: of the experts' hidden vectors, beside `dropout`.
      router_init_scale: s of the router's initialiser; 0 takes `init_scale`.
      router_input: what the router sees: "hidden" (the layer's input), "word" (the word embedding)
        or "both", their sum.
      tied_output: logits from the input table instead of a matrix of their own.
      norm_scale: learned scale in every RMSNorm.
      init_scale: s of the initialiser sqrt(s / fan-in).
      dropout: of residual branches, embeddings, attention and hidden units.
      residual_scale: factor of every residual branch.
      dtype: of activations, "bfloat16" or "float32"; weights are kept in float32.
      reduce_dtype: type in which gradients of dense matrices are added up over devices: "float32",
        or "bfloat16" for half the traffic.
      remat: what of a block is kept for the backward pass, the rest is computed again: "none" (all
        is kept), "dots", "minimal", "offload", "exchange" or "full" (see `trainlib.remat`).
      decoder_remat: the same for the decoder alone; "": as `remat`.
      scan: run equal blocks as a loop (compiles once) instead of one after the other.
    """

    kind: str = "encoder_decoder"
    vocab_size: int = 32128
    width: int = 768
    hidden: int = 2048
    heads: int = 12
    head_width: int = 64
    encoder_blocks: int = 12
    decoder_blocks: int = 12
    activation: str = "geglu"
    routing: RoutingConfig | None = None
    sparse_period: int = 4
    sparse_offset: int = -1
    extra_ffn: str = "after"
    expert_bias: str = "none"
    expert_dropout: float = 0.0
    router_init_scale: float = 0.0
    router_input: str = "hidden"
    tied_output: bool = False
    norm_scale: bool = True
    init_scale: float = 0.1
    dropout: float = 0.0
    residual_scale: float = 1.0
    dtype: str = "bfloat16"
    reduce_dtype: str = "float32"
    remat: str = "full"
    decoder_remat: str = ""
    scan: bool = True

    def __post_init__(self):
        for key, allowed in (
            *(("kind", KINDS), ("activation", ACTIVATIONS), ("extra_ffn", EXTRA_FFN)),
            *(("dtype", DTYPES), ("remat", POLICIES), ("router_input", ROUTER_INPUTS)),
            *(("reduce_dtype", REDUCE), ("decoder_remat", ("", *POLICIES))),
        ):
            if getattr(self, key) not in allowed:
                raise one_of(f"model.{key}", getattr(self, key), allowed)
        sizes = ("vocab_size", "width", "hidden", "heads", "head_width", "sparse_period")
        for key in (*sizes, *self.stacks.values()):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.{key}={getattr(self, key)} must be at least 1.")
        for key in ("dropout", "expert_dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"model.{key}={getattr(self, key)} must be in [0, 1).")
        if self.routing is not None:
            self._check_periods()
            if self.kind == "decoder":
                self.routing.check_causal()

    def _check_periods(self) -> None:
        period, offset = self.sparse_period, self.sparse_offset
        if not -1 <= offset < period:
            raise ConfigError(
                f"model.sparse_offset={offset} is outside a period of {period} blocks: use 0 to "
                f"{period - 1}, or -1 for the last."
            )
        for key in self.stacks.values():
            blocks = getattr(self, key)
            if blocks % period:
                fits = sorted({max(blocks // period, 1) * period, (blocks // period + 1) * period})
                raise ConfigError(
                    f"model.{key}={blocks} is no whole number of periods of "
                    f"model.sparse_period={period} blocks. Nearest: {' or '.join(map(str, fits))}."
                )

    def stack_routing(self, stack: str) -> RoutingConfig | None:
        """The router of a stack: a decoder's never ranks tokens against later ones, whatever the
        encoder's does.
        """
        if self.routing is None or stack == "encoder":
            return self.routing
        return dataclasses.replace(self.routing, batch_prioritized=False, router="tokens_choose")

    @property
    def stacks(self) -> dict[str, str]:
        """Stack -> the field that holds its number of blocks."""
        names = ("encoder", "decoder") if self.kind == "encoder_decoder" else (self.kind,)
        return {name: f"{name}_blocks" for name in names}

    def sparse_blocks(self, stack: str) -> tuple[int, ...]:
        """Numbers of the sparse blocks of a stack, from 0."""
        periods, before, sparse, after = self.periods(stack)
        return tuple(p * (before + sparse + after) + before for p in range(periods * sparse))

    def periods(self, stack: str) -> tuple[int, int, int, int]:
        """(periods, dense blocks before, sparse blocks, dense blocks after) in each period.

        A dense stack is one period.
        """
        blocks = getattr(self, self.stacks[stack])
        if self.routing is None:
            return 1, blocks, 0, 0
        before = self.sparse_offset % self.sparse_period
        return blocks // self.sparse_period, before, 1, self.sparse_period - 1 - before
