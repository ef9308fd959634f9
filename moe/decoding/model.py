"""Decoding with a model: its answers (`moe.decoding.search`), and the score of given candidates.

Letters: B sequences, K beams, N answers of a sequence, C candidates, L most tokens of an answer, V
vocabulary.

In the decoder every expert takes all tokens that want it, so that an answer depends on its own
input alone: not on its neighbours in the batch, not on the number of devices, not on whether it is
decoded token by token. Generation and candidates have one score, which `moe.decoding.search`
defines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from moe.decoding.search import (
    BEAM_RULES,
    NEVER,
    Allowed,
    Choose,
    beam_search,
    generate,
    likeliest,
    sampler,
)
from moe.models.architecture import Architecture
from moe.models.block import OWN, Cache
from moe.models.transformer import Transformer
from moe.routing.config import RoutingConfig, capacity, policy
from moe.text.vocabulary import EOS, PAD
from trainlib.config import require
from trainlib.errors import ConfigError
from trainlib.keys import check_fields, choice, number, whole
from trainlib.model.weights import Abstract, Arrays
from trainlib.model.weights import abstract as abstract_of

METHODS = ("greedy", "beam", "sample")
MOST_BEAMS = 10_000


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are searched.

    Attributes:
      method: "greedy", "beam" or "sample".
      max_length: most tokens of an answer, EOS included; 0 takes data.decoder_length.
      min_length: fewest tokens of an answer before EOS, which may not come sooner (min_new_tokens
        of transformers); 1 forbids the empty answer.
      num_return_sequences: answers of each input. "beam": the best, at most num_beams; "sample":
        independent draws, in the order drawn; "greedy" has one.
      num_beams: hypotheses of "beam"; with one there is nothing to choose, and it is "greedy".
      beam_rule: whose rule "beam" follows, "t5x" (an end among the 2 x beams likeliest
        continuations counts) or "transformers" (among the likeliest `beams`, and the search ends
        sooner); see `moe.decoding.search.beam_search`.
      alpha: of the length penalty of "beam", which only ranks answers: log-probabilities are
        divided by ((5 + tokens) / 6)^alpha with "t5x" (arXiv 1609.08144), by tokens^alpha with
        "transformers" (its length_penalty; 1 by default there). 0: none.
      temperature: of "sample"; logits are divided by it. Scores are those at 1 whatever it is.
      top_k: "sample" draws from the top_k likeliest words; 0: from all.
      top_p: "sample" draws from the fewest likeliest words that hold top_p of the probability.
      seed: of "sample".
    """

    method: Annotated[str, choice(*METHODS)] = "greedy"
    max_length: Annotated[int, whole(1, also={0: "data.decoder_length"})] = 0
    min_length: Annotated[int, whole(0)] = 0
    num_return_sequences: Annotated[int, whole(1, MOST_BEAMS)] = 1
    num_beams: Annotated[int, whole(1, MOST_BEAMS)] = 4
    beam_rule: Annotated[str, choice(*BEAM_RULES)] = "t5x"
    alpha: Annotated[float, number(0)] = 0.6
    temperature: Annotated[float, number(above=0)] = 1.0
    top_k: Annotated[int, whole(1, also={0: "all"})] = 0
    top_p: Annotated[float, number(above=0, high=1)] = 1.0
    seed: Annotated[int, whole(0)] = 0

    def __post_init__(self):
        check_fields(self, "decoding")
        if self.method == "greedy":
            most, rule = 1, "method 'greedy' has one answer; use method 'beam' or 'sample'"
        elif self.method == "beam":
            most, rule = (
                self.num_beams,
                f"use at most decoding.num_beams={self.num_beams}, or more beams",
            )
        else:
            most, rule = self.num_return_sequences, ""
        require(
            self.num_return_sequences <= most,
            "decoding.num_return_sequences",
            self.num_return_sequences,
            rule,
        )

    def most(self, length: int) -> int:
        """L, most tokens of an answer.

        Args:
          length: what 0 stands for.

        Raises:
          ConfigError: no answer of min_length tokens is as short.
        """
        most = self.max_length or length
        rule = f"use at most decoding.max_length, which is {most}"
        require(self.min_length <= most, "decoding.min_length", self.min_length, rule)
        return most


def _without_drops(routing: RoutingConfig | None) -> RoutingConfig | None:
    """The router with room in every expert for all tokens of a sequence."""
    if routing is None or routing.dropless:
        return routing
    return dataclasses.replace(
        routing,
        capacity_factor_eval=float(routing.num_experts),
        min_capacity=1,
        group_size=0,
        group_sequences=1,
    )


def decoding_model(model: Architecture) -> Abstract[Transformer]:
    """The model as it is decoded: the same weights, and a decoder that drops no token.

    Raises:
      ConfigError: it is not an encoder-decoder.
    """
    if model.kind != "encoder_decoder":
        raise ConfigError(
            f"model.kind={model.kind!r} cannot be decoded here: answers come from the decoder of "
            "an encoder-decoder. Use model.kind='encoder_decoder'."
        )
    routing = _without_drops(model.stack_routing("decoder"))
    return abstract_of(Transformer(dataclasses.replace(model, decoder_routing=routing)))


def _reorder(cache: tuple[Cache, ...], parents: jax.Array) -> tuple[Cache, ...]:
    """Moves the decoder's own keys and values [B*K, ..] of each hypothesis to where its parents
    [B, K] say; those of the encoder are shared by the beams of an input.
    """
    batch, beams = parents.shape
    index = (jnp.arange(batch)[:, None] * beams + parents).ravel()
    return tuple(block | {name: block[name][index] for name in OWN} for block in cache)


def independent(model: Architecture, longest: int) -> bool:
    """Whether an answer depends on its own input alone, and not on what is decoded beside it.

    Args:
      model: the architecture.
      longest: tokens of the longest input.
    """
    routings = [routing for name in model.stacks if (routing := model.stack_routing(name))]
    if any(policy(routing, train=False).needs_draws for routing in routings):
        return False  # draws depend on the place in the batch
    routing = model.stack_routing("encoder")
    return (
        routing is None
        or routing.dropless
        or routing.group_sequences == 1
        or routing.group_size == longest
        or capacity(routing, longest, train=False) >= longest
    )


def model_at(model: Architecture, longest: int, length: int) -> Architecture:
    """The model for inputs that are padded to `length` tokens, where `independent`: in its encoder
    every expert takes as many of them as of inputs that are padded to `longest`.
    """
    routing = model.stack_routing("encoder")
    if routing is None:
        return model
    own = {"group_size": 0, "group_sequences": 1}
    if not routing.dropless:
        slots = min(capacity(routing, longest, train=False), length)
        own |= {"capacity_factor_eval": 1e-6, "min_capacity": slots}
    decoder = model.stack_routing("decoder") if "decoder" in model.stacks else None
    return dataclasses.replace(
        model, routing=dataclasses.replace(routing, **own), decoder_routing=decoder
    )


def words_between(words: int, min_length: int) -> Allowed:
    """What may be chosen: words of the vocabulary, and EOS not among the first min_length."""

    def allowed(position: jax.Array, size: int) -> jax.Array:
        number = jnp.arange(size)
        real = (number != PAD) & (number < words)
        late = jnp.asarray(position)[..., None] >= min_length
        return real & ((number != EOS) | late) if min_length else real

    return allowed


def choice_of(
    options: Decoding, number: jax.Array | None = None, draw: jax.Array | None = None
) -> Choose:
    """How words are chosen.

    Args:
      options: how to decode.
      number: int32 [B], the number of the input; with that of the draw, what is drawn follows from
        it.
      draw: int32 [B].
    """
    if options.method != "sample":
        return likeliest
    assert number is not None, "Sampling needs `number` in the batch."
    assert draw is not None
    of_input = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(options.seed), number)
    keys = jax.vmap(jax.random.fold_in)(of_input, draw)
    return sampler(keys, options.temperature, options.top_k, options.top_p)


def make_generate(
    model: Architecture, options: Decoding, length: int, words: int
) -> Callable[[Arrays, Arrays, dict[str, jax.Array]], dict[str, jax.Array]]:
    """`(params, model_state, batch) -> {"words": int32 [B, L], "score": float32 [B]}`, with an axis
    N after B where options.num_return_sequences is above 1; beams have "rank_score" too, shaped as
    "score".

    The batch holds `encoder_inputs` and `encoder_segments`, int32 [B, K], one input in each, and
    for sampling `number` int32 [B], from which the draws of a sequence follow. `score` is the
    log-probability of the answer, `rank_score` what beams are ranked by. Where a beam search has
    fewer than N answers, the scores of the last are `NEVER` or less.

    Args:
      model: the architecture.
      options: how to search.
      length: L, where options.max_length is 0.
      words: size of the vocabulary; entries of the model's table above it are no words.

    Raises:
      ConfigError: the model has no decoder for answers, or options.min_length does not fit.
    """
    abstract = decoding_model(model)
    length, allowed = options.most(length), words_between(words, options.min_length)
    beams = options.num_beams if options.method == "beam" else 1  # one is greedy search
    copies = options.num_return_sequences if options.method == "sample" else beams

    def run(
        params: Arrays, model_state: Arrays, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        bound = abstract.bind(params, model_state)
        segments = batch["encoder_segments"]
        size = segments.shape[0]  # B
        encoded, _ = bound.encode(batch["encoder_inputs"], segments, train=False)  # [B, K, D]
        decoder = bound.token_decoder(length)
        cache = decoder.carried(decoder.init_cache(size * copies, encoded))

        def decode_step(
            tokens: jax.Array, cache: Any, position: jax.Array
        ) -> tuple[jax.Array, Any]:
            return decoder.step(tokens, cache, position, segments)

        if beams > 1:
            result = beam_search(
                decode_step,
                cache,
                size,
                length,
                beams,
                options.alpha,
                _reorder,
                allowed,
                options.beam_rule,
            )._asdict()
        else:
            number, draw = batch.get("number"), jnp.tile(jnp.arange(copies), size)
            number = number if number is None else jnp.repeat(number, copies)
            choose = choice_of(options, number, draw)
            words, score = generate(decode_step, cache, size * copies, length, choose, allowed)
            result = {
                "words": words.reshape(size, copies, length),
                "score": score.reshape(size, copies),
            }
        count = options.num_return_sequences
        return {name: x[:, :count] if count > 1 else x[:, 0] for name, x in result.items()}

    return run


def make_score(
    model: Architecture,
) -> Callable[[Arrays, Arrays, dict[str, jax.Array]], jax.Array]:
    """`(params, model_state, batch) -> float32 [B, C]`: log-probability of every candidate answer.

    One pass of the encoder and one of the decoder over all candidates, which share its keys and
    values: much faster than decoding.
    The batch holds `encoder_inputs`, `encoder_segments`, int32 [B, K], one input in each, and
    `candidates` int32 [B, C, L], words with EOS, padded with 0; a candidate without words scores
    `NEVER`.
    """
    abstract = decoding_model(model)

    def run(params: Arrays, model_state: Arrays, batch: dict[str, jax.Array]) -> jax.Array:
        bound = abstract.bind(params, model_state)
        segments, candidates = batch["encoder_segments"], batch["candidates"]
        size, count, length = candidates.shape  # B, C, L
        encoded, _ = bound.encode(batch["encoder_inputs"], segments, train=False)
        targets = candidates.reshape(size * count, length)
        inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
        real = (targets != PAD).astype(jnp.int32)
        hidden, _ = bound.decode(inputs, real, encoded, segments, train=False)
        logits = bound.logits(hidden)  # [B*C, L, V]
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        target_logits = jnp.sum(jnp.where(is_target, logits, 0.0), -1)  # [B*C, L]
        log_probs = target_logits - jax.nn.logsumexp(logits, -1)
        score = jnp.sum(jnp.where(real > 0, log_probs, 0.0), axis=-1)  # [B*C]
        return jnp.where(real[:, 0] > 0, score, NEVER).reshape(size, count)

    return run
