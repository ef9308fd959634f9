"""Encoder-decoder, encoder-only and decoder-only models from the same stacks.

Letters: B batch, L length, D model width, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from moe.kernels.cross_entropy import TokenValues
from moe.layers.embed import Embedding, Output
from moe.layers.sparse import Trace
from moe.layers.token_loss import token_loss
from moe.models.architecture import Architecture
from moe.models.block import Aux, Cache
from moe.models.output import ModelOutput, Reports, router_loss, router_outputs
from moe.models.stack import Stack
from moe.models.token_decoder import TokenDecoder
from trainlib.model.inputs import check_array
from trainlib.model.layer import Layer, named
from trainlib.sharding.constrain import automatic_axes

Batch = dict[str, jax.Array]


class Transformer(Layer):
    """A T5 v1.1-style model, dense or sparse (arXiv 1910.10683, 2002.05202, 2202.08906).

    It is used as any module of Flax, under `nnx.jit`, `nnx.value_and_grad` and `nnx.Optimizer`.

    Example:
      >>> model = moe.Transformer(moe.Architecture(routing=moe.RoutingConfig(16)), rngs=nnx.Rngs(0))
      >>> decoder_inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
      >>> out = model(encoder_inputs, decoder_inputs, train=True, key=jax.random.key(0))
      >>> loss = cross_entropy(out.logits, targets) + out.auxiliary_loss

    `hidden` runs the stacks, `logits` the last matrix: a loss can then be recomputed without the
    stacks. `encode` and `decode` are the two halves.

    Args:
      config: the architecture.
      rngs: keys of the weights, which are then arrays; None leaves them abstract, for counts and
        sharded initialisation (see `trainlib.model.weights.declare`).
    """

    encoder: Stack  # as far as the architecture has them
    decoder: Stack

    def __init__(self, config: Architecture, *, rngs: nnx.Rngs | None = None):
        self.config = config
        self.embedding = Embedding(
            config.vocab_size, config.d_model, config.reduce_dtype, rngs=rngs
        )
        for name in config.stacks:
            setattr(self, name, Stack(config, name, rngs=rngs))
        if not config.tie_word_embeddings:
            self.output = Output(
                config.d_model, config.vocab_size, config.init_scale, config.reduce_dtype, rngs=rngs
            )
        if config.tuned:
            config.tuned.declare(self, config.init_scale, rngs)

    @named
    def encode(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        trace: Trace = False,
    ) -> tuple[jax.Array, dict[str, Aux]]:
        """Tokens int32 [B, L] -> [B, L, D] and the reports of the blocks."""
        x = self.embedding(tokens, self.config.dtype)
        return self.encoder(x, segments, key=key, train=train, trace=trace)

    @named
    def decode(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        encoded: jax.Array | None = None,
        encoder_segments: jax.Array | None = None,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        trace: Trace = False,
    ) -> tuple[jax.Array, dict[str, Aux]]:
        """Tokens int32 [B, L], already shifted right -> [B, L, D] and the reports of the blocks."""
        x = self.embedding(tokens, self.config.dtype)
        options = {"key": key, "train": train, "trace": trace}
        return self.decoder(x, segments, encoded, encoder_segments, **options)

    def init_cache(
        self, batch: int, length: int, encoded: jax.Array | None = None
    ) -> tuple[Cache, ...]:
        """The cache for decoding token by token, of which every leaf has the sequences as its first
        axis; see `TokenDecoder.init_cache`.
        """
        return self.token_decoder(length).init_cache(batch, encoded)

    def decode_step(
        self,
        tokens: jax.Array,
        cache: tuple[Cache, ...],
        position: jax.Array,
        encoder_segments: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Cache, ...]]:
        """Reads one more token of each sequence; see `TokenDecoder.step`."""
        decoder = self.token_decoder(cache[0]["value"].shape[2])
        return decoder.step(tokens, cache, position, encoder_segments)

    def token_decoder(self, length: int) -> TokenDecoder:
        """The decoder for sequences of at most `length` tokens. A loop makes it before it begins:
        what does not change from token to token is then made once.
        """
        return TokenDecoder(self.decoder, self.embedding, self.logits, length)

    @named
    def hidden(
        self,
        batch: Batch,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        trace: Trace = False,
    ) -> tuple[jax.Array, Reports]:
        """The last hidden states [B, L, D] of the decoder (of the encoder, where it is alone).

        Args:
          batch: `encoder_inputs`, `encoder_segments`, `decoder_inputs`, `decoder_segments`, int32
            [B, L], as far as the model has the stack.
          train: training or evaluation: dropout, noise, policies and capacity factor.
          key: for dropout, noise and random policies; None draws nothing, and is refused where
            training needs draws.
          trace: in evaluation, report where routers sent each token; see `moe.SparseOutput`.
        """
        keys = {
            name: None if key is None else jax.random.fold_in(key, number)
            for number, name in enumerate(("encoder", "decoder"))
        }
        reports: Reports = {}
        x = segments = None
        if "encoder" in self.config.stacks:
            segments = batch["encoder_segments"]
            x, reports["encoder"] = self.encode(
                batch["encoder_inputs"],
                segments,
                train=train,
                key=keys["encoder"],
                trace=trace,
            )
        if "decoder" in self.config.stacks:
            x, reports["decoder"] = self.decode(
                batch["decoder_inputs"],
                batch["decoder_segments"],
                x,
                segments,
                train=train,
                key=keys["decoder"],
                trace=trace,
            )
        assert x is not None
        return x, reports

    @named
    def logits(self, hidden: jax.Array) -> jax.Array:
        """[B, L, D] -> float32 [B, L, V]."""
        if self.config.tie_word_embeddings:
            return self.embedding.attend(hidden)
        return self.output(hidden)

    def token_loss(
        self, hidden: jax.Array, targets: jax.Array, weights: jax.Array, *, z_loss: float = 0.0
    ) -> tuple[jax.Array, TokenValues]:
        """The loss of `logits(hidden)`, which are never all there; see
        `moe.layers.token_loss.token_loss`.
        """
        reduce = self.config.reduce_dtype
        if self.config.tie_word_embeddings:
            hidden, table = self.embedding.scaled(hidden), self.embedding.table
            return token_loss(
                hidden, table, targets, weights, z_loss=z_loss, reduce=reduce, transposed=True
            )
        matrix = self.output.kernel
        return token_loss(hidden, matrix, targets, weights, z_loss=z_loss, reduce=reduce)

    def rebalance(self, output: ModelOutput) -> None:
        """Moves the balance biases of all routers by what one training step sent to the experts,
        for a loop of your own; see `moe.SparseFFN.rebalance`.

        Example:
          >>> optimizer.update(model, gradients)
          >>> model.rebalance(output)
        """
        for stack, report in output.routers.items():
            getattr(self, stack).rebalance(report)

    @automatic_axes(lambda batch: ModelOutput(batch, P(), P()))  # pyright: ignore
    def __call__(
        self,
        encoder_inputs: jax.Array | None = None,
        decoder_inputs: jax.Array | None = None,
        *,
        encoder_segments: jax.Array | None = None,
        decoder_segments: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
        trace: Trace = False,
    ) -> ModelOutput:
        """Logits of a batch, and the losses of the routers; see the example of the class.

        Args:
          encoder_inputs: int32 [B, K] tokens, 0 at padding; of a model with an encoder.
          decoder_inputs: int32 [B, L], the targets shifted right by one place, so that column 0 is
            0 and the model predicts target t from targets before t; of a model with a decoder.
          encoder_segments: int32 [B, K]: equal numbers attend to each other, 0 is padding. None:
            every token that is not 0 is in segment 1. They are needed for packed rows alone.
          decoder_segments: the same for the decoder, int32 [B, L]; without them column 0, which
            begins the sequence, belongs to segment 1 as well.
          train: dropout, router noise, and the policies and capacity of training.
          key: random key of training; it is needed if there is dropout, jitter or a random
            second-choice policy, which is the default of `RoutingConfig`.
          trace: in evaluation, report where routers sent each token as well:
            `out.routers["encoder"].choices.expert` is int32 [P, B, length, choices].

        Raises:
          InputError: tokens that are no whole numbers [batch, length].
          ValueError: tokens for a stack that the model lacks, or none for one that it has; or no
            key where draws are needed.
          ConfigError: the batch cannot be cut into the groups that `RoutingConfig` asks for.
        """
        inputs = {"encoder": encoder_inputs, "decoder": decoder_inputs}
        segments = {"encoder": encoder_segments, "decoder": decoder_segments}
        batch: Batch = {}
        for stack, tokens in inputs.items():
            if (tokens is not None) != (stack in self.config.stacks):
                raise ValueError(
                    f"A model of kind {self.config.kind!r} needs "
                    f"{' and '.join(f'{name}_inputs' for name in self.config.stacks)}, and "
                    f"{stack}_inputs {'is missing' if tokens is None else 'was given'}."
                )
            if tokens is not None:
                check_array(f"{stack}_inputs", tokens, "batch length", "integer")
                given = segments[stack]
                batch[f"{stack}_inputs"] = tokens
                batch[f"{stack}_segments"] = _segments(tokens, stack) if given is None else given
        x, reports = self.hidden(batch, train=train, key=key, trace=trace)
        routers = router_outputs(reports)
        return ModelOutput(self.logits(x), router_loss(routers, self.config.routing), routers)


def _segments(tokens: jax.Array, stack: str) -> jax.Array:
    """int32 [B, L]: 1 at tokens, 0 at padding; a decoder's first column is its start."""
    real = jnp.asarray(tokens) != 0
    if stack == "decoder":
        real = real | (jnp.arange(tokens.shape[1]) == 0)
    return real.astype(jnp.int32)
