"""Decoding: greedy, sampling, beam search, and the score of given candidates.

Letters: B sequences, K beams, C candidates, L most tokens of an answer, V vocabulary.

The searches know no model: they call `step(tokens [B], kept, position) -> (logits [B, V], kept)`
and take its words until EOS. Shapes are static; a search ends when every sequence has ended. In the
decoder every expert takes all tokens that want it, so that an answer depends on its own input
alone: not on its neighbours in the batch, not on the number of devices, not on whether it is
decoded token by token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from moe.data.vocabulary import EOS, PAD
from moe.models.architecture import Architecture
from moe.models.transformer import Transformer
from moe.routing_config import RoutingConfig
from trainlib import nn
from trainlib.errors import ConfigError, one_of
from trainlib.options import require

METHODS = ("greedy", "beam", "sample")
NEVER = -1e9  # log-probability of what cannot be; finite, so that sums of it are no NaN

Step = Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]
Choose = Callable[[jax.Array, jax.Array], jax.Array]  # (logits [B, V], position) -> words [B]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are searched.

    Attributes:
      method: "greedy", "beam" or "sample".
      length: most tokens of an answer, EOS included; 0 takes data.decoder_length.
      beams: hypotheses kept by "beam"; with one there is nothing to choose, and it is "greedy".
      alpha: of the length penalty ((5 + tokens) / 6)^alpha of "beam" (arXiv 1609.08144); 0: none.
      temperature: of "sample"; logits are divided by it.
      top_k: "sample" draws from the top_k likeliest words; 0: from all.
      top_p: "sample" draws from the fewest likeliest words that hold top_p of the probability.
      seed: of "sample".
    """

    method: str = "greedy"
    length: int = 0
    beams: int = 4
    alpha: float = 0.6
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise one_of("decoding.method", self.method, METHODS)
        for key, fits, rule in (
            ("length", self.length >= 0, "use 0 or more"),
            ("beams", self.beams >= 1, "use 1 or more"),
            ("alpha", self.alpha >= 0, "use 0 or more"),
            ("temperature", self.temperature > 0, "it is above 0; for 0 use method 'greedy'"),
            ("top_k", self.top_k >= 0, "use 0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "it lies above 0 and is at most 1"),
            ("seed", self.seed >= 0, "use 0 or more"),
        ):
            require(fits, f"decoding.{key}", getattr(self, key), rule)


def likeliest(logits: jax.Array, position: jax.Array) -> jax.Array:
    """The word with the highest logit, the first of equal ones."""
    del position
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sampler(keys: jax.Array, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Choose:
    """Draws words; both limits hold, and the likeliest word is always left.

    Args:
      keys: a random key for each sequence [B]: what it draws depends on no other sequence.
      temperature: see `Decoding`.
      top_k: see `Decoding`.
      top_p: see `Decoding`; the probabilities are those at this temperature.
    """

    def choose(logits: jax.Array, position: jax.Array) -> jax.Array:
        logits = logits / temperature
        size = logits.shape[-1]
        draw = jax.vmap(
            lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row)
        )
        if not 0 < top_k < size and top_p == 1.0:  # no limit: nothing to sort
            return draw(keys, logits).astype(jnp.int32)
        ranked, words = jax.lax.top_k(logits, min(top_k or size, size))
        if top_p < 1.0:
            share = jnp.exp(ranked - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
            ranked = jnp.where(jnp.cumsum(share, axis=-1) - share < top_p, ranked, NEVER)
        drawn = draw(keys, ranked)
        return jnp.take_along_axis(words, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)

    return choose


def generate(
    step: Step, kept: Any, rows: int, length: int, choose: Choose = likeliest
) -> tuple[jax.Array, jax.Array]:
    """One answer a sequence, word by word.

    Args:
      step: the model.
      kept: what it keeps between words.
      rows: B.
      length: L.
      choose: takes a word.

    Returns:
      (int32 [B, L] words, padding after EOS; float32 [B] their log-probability).
    """

    def body(state: tuple) -> tuple:
        position, last, done, words, score, kept = state
        logits, kept = step(last, kept, position)
        word = jnp.where(done, PAD, choose(logits, position))
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), word[:, None], axis=-1)[:, 0]
        score += jnp.where(done, 0.0, own)
        words = jax.lax.dynamic_update_slice_in_dim(words, word[:, None], position, axis=1)
        return position + 1, word, done | (word == EOS), words, score, kept

    def going(state: tuple) -> jax.Array:
        return (state[0] < length) & ~jnp.all(state[2])

    first = jnp.full(rows, PAD, jnp.int32)
    empty = jnp.full((rows, length), PAD, jnp.int32)
    begin = jnp.int32(0), first, jnp.zeros(rows, bool), empty, jnp.zeros(rows), kept
    state = jax.lax.while_loop(going, body, begin)
    return state[3], state[4]


def length_penalty(tokens: Any, alpha: float) -> Any:
    """((5 + tokens) / 6)^alpha, which log-probabilities are divided by (arXiv 1609.08144)."""
    return ((5.0 + tokens) / 6.0) ** alpha


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Beam:
    """The state of a beam search; `live` has not ended, `done` has, best first."""

    position: jax.Array
    words: jax.Array  # [B, K, L]
    live: jax.Array  # [B, K] log-probabilities
    done_words: jax.Array  # [B, K, L]
    done: jax.Array  # [B, K] log-probabilities over the length penalty
    kept: Any


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """[B, M, ..] and [B, K] -> [B, K, ..]."""
    return jax.vmap(lambda row, i: row[i])(x, index)


def beam_search(
    step: Step,
    kept: Any,
    rows: int,
    length: int,
    beams: int,
    alpha: float,
    reorder: Callable[[Any, jax.Array], Any],
) -> tuple[jax.Array, jax.Array]:
    """The `beams` best answers of each sequence, by the rule of T5X (`t5x.decoding.beam_search`).

    Each step continues K hypotheses by every word and takes the 2K likeliest continuations. Those
    that end are answers, of which the K best by score are kept; the K likeliest of the others go
    on. The search is over when no hypothesis can still become better than the worst of K answers:
    its log-probability can only fall, and the length penalty is largest at L words. Hypotheses that
    did not end within L words count only where none did.

    Args:
      step: the model, on B*K sequences, K of the same input in a row.
      kept: what it keeps between words.
      rows: B.
      length: L.
      beams: K.
      alpha: of the length penalty.
      reorder: (kept, parents [B, K]) -> kept in which hypothesis k of a row goes on from its
        hypothesis parents[k].

    Returns:
      (int32 [B, K, L] words, best first, padding after EOS; float32 [B, K] scores: log-probability
      over length penalty, `NEVER` or less where there are fewer than K answers).
    """

    def body(state: _Beam) -> _Beam:
        before = jax.lax.dynamic_slice_in_dim(state.words, state.position - 1, 1, axis=2)[..., 0]
        last = jnp.where(state.position > 0, before, PAD).reshape(-1)
        logits, kept = step(last, state.kept, state.position)
        size = logits.shape[-1]
        total = jax.nn.log_softmax(logits).reshape(rows, beams, size) + state.live[..., None]
        best, place = jax.lax.top_k(total.reshape(rows, -1), min(2 * beams, beams * size))
        parents, word = place // size, (place % size).astype(jnp.int32)
        words = jax.lax.dynamic_update_slice_in_dim(
            _pick(state.words, parents), word[..., None], state.position, axis=2
        )
        ends = word == EOS
        ended = ends & (best > NEVER / 2)
        score = jnp.where(ended, best / length_penalty(state.position + 1, alpha), 2 * NEVER)
        done, index = jax.lax.top_k(jnp.concatenate([state.done, score], axis=1), beams)
        done_words = _pick(jnp.concatenate([state.done_words, words], axis=1), index)
        live, going_on = jax.lax.top_k(jnp.where(ends, 2 * NEVER, best), beams)
        return _Beam(
            state.position + 1,
            _pick(words, going_on),
            jnp.maximum(live, 2 * NEVER),
            done_words,
            done,
            reorder(kept, jnp.take_along_axis(parents, going_on, axis=1)),
        )

    def going(state: _Beam) -> jax.Array:
        best = state.live[:, 0]
        hopeful = best / length_penalty(length, alpha) >= state.done[:, -1]
        return (state.position < length) & jnp.any(hopeful & (best > NEVER / 2))

    empty = jnp.full((rows, beams, length), PAD, jnp.int32)
    live = jnp.where(jnp.arange(beams) == 0, 0.0, NEVER) * jnp.ones((rows, 1))
    none = jnp.full((rows, beams), 2 * NEVER)
    end = jax.lax.while_loop(going, body, _Beam(jnp.int32(0), empty, live, empty, none, kept))
    ended = end.done[:, :1] > NEVER / 2
    unended = end.live / length_penalty(length, alpha)
    words = jnp.where(ended[..., None], end.done_words, end.words)
    return words, jnp.where(ended, end.done, unended)


class _NothingDropped(Architecture):
    """The same weights; in the decoder every expert has room for all tokens of a sequence."""

    def stack_routing(self, stack: str) -> RoutingConfig | None:
        routing = super().stack_routing(stack)
        if routing is None or stack == "encoder" or routing.dropless:
            return routing
        return dataclasses.replace(
            routing,
            capacity_factor_eval=float(routing.num_experts),
            min_capacity=1,
            group_size=0,
            group_sequences=1,
        )


def decoding_model(model: Architecture) -> nn.Abstract:
    """The model as it is decoded: the same weights, and a decoder that drops no token.

    Raises:
      ConfigError: it is not an encoder-decoder.
    """
    if model.kind != "encoder_decoder":
        raise ConfigError(
            f"model.kind={model.kind!r} cannot be decoded here: answers come from the decoder of "
            "an encoder-decoder. Use model.kind='encoder_decoder'."
        )
    values = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return nn.abstract(Transformer(_NothingDropped(**values)))


def _reorder(kept: Any, parents: jax.Array, rows: int) -> Any:
    """Moves the decoder's own keys and values; those of the encoder are equal for all beams."""
    beams = parents.shape[1]

    def moved(path: tuple, leaf: jax.Array) -> jax.Array:
        if path[-1].key not in ("key", "value"):
            return leaf
        lead = leaf.ndim - 4  # periods, and layers of a period
        split = leaf.reshape(*leaf.shape[:lead], rows, beams, *leaf.shape[lead + 1 :])
        index = parents.reshape(*(1,) * lead, rows, beams, 1, 1, 1)
        return jnp.take_along_axis(split, index, axis=lead + 1).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(moved, kept)


def make_generate(
    model: Architecture, options: Decoding, length: int, words: int
) -> Callable[[nn.Arrays, nn.Arrays, dict[str, jax.Array]], dict[str, jax.Array]]:
    """`(params, {}, batch) -> {"words": int32 [B, L], "score": float32 [B]}`.

    The batch holds `encoder_inputs` and `encoder_segments`, int32 [B, K], one input a row, and for
    sampling `number` int32 [B], from which a row's random draws follow.

    Args:
      model: the architecture.
      options: how to search.
      length: L, where options.length is 0.
      words: size of the vocabulary; rows of the model's table above it are no words.
    """
    abstract = decoding_model(model)
    length = options.length or length

    def run(
        params: nn.Arrays, model_state: nn.Arrays, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        bound = abstract.bind(params, model_state)
        segments = batch["encoder_segments"]
        rows = segments.shape[0]
        encoded, _ = bound.encode(batch["encoder_inputs"], segments, train=False)
        beams = options.beams if options.method == "beam" else 1  # one is greedy search
        encoded, segments = (jnp.repeat(x, beams, axis=0) for x in (encoded, segments))
        kept = bound.begin(rows * beams, length, encoded)

        def step(tokens: jax.Array, kept: Any, position: jax.Array) -> tuple[jax.Array, Any]:
            logits, kept = bound.step(tokens, kept, position, segments)
            number = jnp.arange(logits.shape[-1])
            return jnp.where((number != PAD) & (number < words), logits, NEVER), kept

        if beams > 1:
            found = beam_search(
                *(step, kept, rows, length, beams, options.alpha),
                functools.partial(_reorder, rows=rows),
            )
            return {"words": found[0][:, 0], "score": found[1][:, 0]}
        choose = likeliest
        if options.method == "sample":
            keys = jax.vmap(jax.random.fold_in, (None, 0))(
                jax.random.key(options.seed), batch["number"]
            )
            choose = sampler(keys, options.temperature, options.top_k, options.top_p)
        answer, score = generate(step, kept, rows, length, choose)
        return {"words": answer, "score": score}

    return run


def make_score(
    model: Architecture,
) -> Callable[[nn.Arrays, nn.Arrays, dict[str, jax.Array]], jax.Array]:
    """`(params, {}, batch) -> float32 [B, C]`: log-probability of every candidate answer.

    One pass of the encoder and one of the decoder over all candidates: much faster than decoding.
    The batch holds `encoder_inputs`, `encoder_segments`, int32 [B, K], one input a row, and
    `candidates` int32 [B, C, L], words with EOS, padded with 0; a candidate without words scores
    `NEVER`.
    """
    abstract = decoding_model(model)

    def run(params: nn.Arrays, model_state: nn.Arrays, batch: dict[str, jax.Array]) -> jax.Array:
        bound = abstract.bind(params, model_state)
        segments, candidates = batch["encoder_segments"], batch["candidates"]
        rows, count, length = candidates.shape
        encoded, _ = bound.encode(batch["encoder_inputs"], segments, train=False)
        encoded, segments = (jnp.repeat(x, count, axis=0) for x in (encoded, segments))
        targets = candidates.reshape(rows * count, length)
        inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
        real = (targets != PAD).astype(jnp.int32)
        hidden, _ = bound.decode(inputs, real, encoded, segments, train=False)
        logits = bound.logits(hidden)
        own = jnp.arange(logits.shape[-1]) == targets[..., None]
        found = jnp.sum(jnp.where(own, logits, 0.0), -1) - jax.nn.logsumexp(logits, -1)
        score = jnp.sum(jnp.where(real > 0, found, 0.0), axis=-1)
        return jnp.where(real[:, 0] > 0, score, NEVER).reshape(rows, count)

    return run
