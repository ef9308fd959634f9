"""Searches for answers: greedy, sampling and beam search, of any model.

Letters: B sequences, K beams, L most tokens of an answer, V vocabulary.

The searches know no model: they call
`decode_step(tokens [B], cache, position) -> (logits [B, V], cache)` and take its words until EOS.
Shapes are static; a search ends when every sequence has ended.

The score of an answer is its log-probability: the sum of log softmax(logits) over its tokens, EOS
included where there is one. The softmax is over all logits, also over those of words that may not
be chosen and at any temperature, so that an answer has the same score wherever it comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe.text.vocabulary import EOS, PAD
from trainlib.errors import one_of

NEVER = -1e9  # log-probability of what cannot be; finite, so that sums of it are no NaN
BEAM_RULES = ("t5x", "transformers")

DecodeStep = Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]
# A position is that of all sequences, int32 scalar, or that of each, [B].
Choose = Callable[[jax.Array, jax.Array], jax.Array]  # (logits [B, V], position) -> words [B]
Allowed = Callable[[jax.Array, int], jax.Array]  # (position, V) -> bool [(B,) V]: may be chosen


def every_word(_position: jax.Array, size: int) -> jax.Array:
    """bool [V]: all words may be chosen, padding too."""
    return jnp.ones(size, bool)


def likeliest(logits: jax.Array, _position: jax.Array) -> jax.Array:
    """int32 [B]: the word with the highest logit [B, V], the first of equal ones."""
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
        of_draw = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(position, keys.shape))
        draw = jax.vmap(jax.random.categorical)
        if not 0 < top_k < size and top_p == 1.0:  # no limit: nothing to sort
            return draw(of_draw, logits).astype(jnp.int32)
        ranked, words = jax.lax.top_k(logits, min(top_k or size, size))
        if top_p < 1.0:
            share = jnp.exp(ranked - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
            ranked = jnp.where(jnp.cumsum(share, axis=-1) - share < top_p, ranked, NEVER)
        drawn = draw(of_draw, ranked)
        return jnp.take_along_axis(words, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)

    return choose


def next_word(
    logits: jax.Array, position: jax.Array, choose: Choose, allowed: Allowed
) -> tuple[jax.Array, jax.Array]:
    """(int32 [B] the words that are chosen, float32 [B] their log-probabilities).

    Args:
      logits: [B, V].
      position: int32 scalar or [B], the place of the word.
      choose: takes a word; logits of words that may not be chosen are `NEVER`.
      allowed: the words that may be chosen.
    """
    open_to = jnp.where(allowed(position, logits.shape[-1]), logits, NEVER)
    word = choose(open_to, position)
    logit = jnp.take_along_axis(logits, word[:, None], axis=-1)[:, 0]
    return word, logit - jax.nn.logsumexp(logits, axis=-1)


def generate(
    decode_step: DecodeStep,
    cache: Any,
    batch: int,
    length: int,
    choose: Choose = likeliest,
    allowed: Allowed = every_word,
) -> tuple[jax.Array, jax.Array]:
    """One answer a sequence, word by word.

    Args:
      decode_step: the model.
      cache: of the model, before the first word.
      batch: B.
      length: L.
      choose: takes a word; logits of words that may not be chosen are `NEVER`.
      allowed: the words that may be chosen.

    Returns:
      (int32 [B, L] words, padding after EOS; float32 [B] their log-probability).
    """

    def body(state: tuple) -> tuple:
        position, last, done, words, score, cache = state
        logits, cache = decode_step(last, cache, position)
        word, gained = next_word(logits, position, choose, allowed)
        word = jnp.where(done, PAD, word)
        score += jnp.where(done, 0.0, gained)
        words = jax.lax.dynamic_update_slice_in_dim(words, word[:, None], position, axis=1)
        return position + 1, word, done | (word == EOS), words, score, cache

    def unfinished(state: tuple) -> jax.Array:
        return (state[0] < length) & ~jnp.all(state[2])

    first = jnp.full(batch, PAD, jnp.int32)
    empty = jnp.full((batch, length), PAD, jnp.int32)
    start = jnp.int32(0), first, jnp.zeros(batch, bool), empty, jnp.zeros(batch), cache
    state = jax.lax.while_loop(unfinished, body, start)
    return state[3], state[4]


def length_penalty(tokens: Any, alpha: float, rule: str = "t5x") -> Any:
    """What log-probabilities are divided by: of T5X ((5 + tokens) / 6)^alpha (arXiv 1609.08144), of
    transformers tokens^alpha. EOS is a token.
    """
    return ((5.0 + tokens) / 6.0 if rule == "t5x" else 1.0 * tokens) ** alpha


class Answers(NamedTuple):
    """The answers of a beam search, best first; scores of `NEVER` or less: there are fewer."""

    words: jax.Array  # int32 [B, K, L], padding after EOS
    score: jax.Array  # float32 [B, K] log-probabilities
    rank_score: jax.Array  # float32 [B, K] what they are ranked by, as the library gives it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Beam:
    """The state of a beam search; `live` has not ended, `done` has."""

    position: jax.Array
    words: jax.Array  # [B, K, L]
    live: jax.Array  # [B, K] log-probabilities
    done: Answers
    searching: jax.Array  # bool [B]: a live one can still come to be among the answers
    cache: Any


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """[B, M, ..] and [B, K] -> [B, K, ..]."""
    return jax.vmap(lambda row, i: row[i])(x, index)


def _at(words: jax.Array, position: jax.Array) -> jax.Array:
    """[B, M, L] -> [B, M], the words at a position."""
    return jax.lax.dynamic_slice_in_dim(words, position, 1, axis=2)[..., 0]


def _continued(
    decode_step: DecodeStep, state: _Beam, allowed: Allowed
) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
    """The 2K likeliest continuations, likeliest first: (log-probabilities [B, 2K], words
    [B, 2K, L], the hypotheses they continue [B, 2K], cache).
    """
    batch, beams, _ = state.words.shape
    last = jnp.where(state.position > 0, _at(state.words, state.position - 1), PAD)
    logits, cache = decode_step(last.reshape(-1), state.cache, state.position)  # [B*K, V]
    size = logits.shape[-1]
    log_probs = jnp.where(allowed(state.position, size), jax.nn.log_softmax(logits), NEVER)
    total = log_probs.reshape(batch, beams, size) + state.live[..., None]  # [B, K, V]
    best, index = jax.lax.top_k(total.reshape(batch, -1), min(2 * beams, beams * size))
    parents, word = index // size, (index % size).astype(jnp.int32)  # [B, 2K]
    words = jax.lax.dynamic_update_slice_in_dim(
        _pick(state.words, parents), word[..., None], state.position, axis=2
    )
    return best, words, parents, cache


def beam_search(
    decode_step: DecodeStep,
    cache: Any,
    batch: int,
    length: int,
    beams: int,
    alpha: float,
    reorder: Callable[[Any, jax.Array], Any],
    allowed: Allowed = every_word,
    rule: str = "t5x",
) -> Answers:
    """The `beams` best answers of each sequence, by the rule of one of two libraries.

    Each step continues K hypotheses by every word and takes the 2K likeliest continuations. Those
    that end are answers, of which the K best by log-probability over length penalty are kept; the K
    likeliest of the others are continued. The rules differ in the rest:

    * "t5x" (`t5x.decoding.beam_search`). An EOS anywhere among the 2K counts. The search is over
      when no hypothesis can still become better than the worst of K answers: its log-probability
      can only fall, and the length penalty is largest at L words. Hypotheses that did not end
      within L words count only where none did, and are ranked without a length penalty.
    * "transformers" (`generate` with its defaults). An EOS counts among the K likeliest only. The
      search is over when the likeliest hypothesis, over the length penalty of the words it has
      now, is no better than the worst of K answers. What has not ended by L words counts as it is.

    Of equal continuations T5X takes what lies first in its order, in which the best beam is the
    last; `transformers` leaves it to torch, and here it is the first.

    Args:
      decode_step: the model, on B*K sequences, K of the same input in a row.
      cache: of the model, before the first word.
      batch: B.
      length: L.
      beams: K.
      alpha: of the length penalty.
      reorder: (cache, parents [B, K]) -> cache in which hypothesis k of a sequence continues its
        hypothesis parents[k].
      allowed: the words that may be chosen; their log-probabilities count all words.
      rule: one of `BEAM_RULES`.

    Raises:
      ConfigError: no such rule.
    """
    if rule not in BEAM_RULES:
        raise one_of("decoding.beam_rule", rule, BEAM_RULES)
    theirs = rule == "transformers"

    def best_of(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the K largest [B, K], their indices), in the order in which the library has beams."""
        largest, index = jax.lax.top_k(values, beams)
        return (largest, index) if theirs else (largest[:, ::-1], index[:, ::-1])

    def merged(done: Answers, *more: jax.Array) -> Answers:
        every = [jnp.concatenate(pair, axis=1) for pair in zip(done, more, strict=True)]
        _, index = best_of(every[-1])
        return Answers(*(_pick(x, index) for x in every))

    def body(state: _Beam) -> _Beam:
        best, words, parents, cache = _continued(decode_step, state, allowed)
        tokens = state.position + 1
        ends = _at(words, state.position) == EOS  # [B, 2K]
        ends |= theirs & (tokens == length)
        counts = ends & (best > NEVER / 2) & state.searching[:, None]
        if theirs:
            counts &= jnp.arange(ends.shape[1]) < beams
        penalty = length_penalty(tokens, alpha, rule)
        score = jnp.where(counts, best, 2 * NEVER)
        rank = jnp.where(counts, best / penalty, 2 * NEVER)
        done = merged(state.done, words, score, rank)
        live, continued = best_of(jnp.where(ends, 2 * NEVER, best))  # [B, K]
        hope, worst = jnp.max(live, axis=1), jnp.min(done.rank_score, axis=1)  # [B]
        # T5X has L + 1 words here, which needs more steps now and then and finds the same.
        better = hope / penalty > worst if theirs else hope / longest >= worst
        return _Beam(
            tokens,
            _pick(words, continued),
            jnp.maximum(live, 2 * NEVER),
            done,
            state.searching & better & (hope > NEVER / 2),
            reorder(cache, jnp.take_along_axis(parents, continued, axis=1)),
        )

    longest = length_penalty(length, alpha, rule)
    empty = jnp.full((batch, beams, length), PAD, jnp.int32)
    live = jnp.where(jnp.arange(beams) == 0, 0.0, NEVER) * jnp.ones((batch, 1))
    none = jnp.full((batch, beams), 2 * NEVER)
    start = _Beam(
        position=jnp.int32(0),
        words=empty,
        live=live,
        done=Answers(empty, none, none),
        searching=jnp.ones(batch, bool),
        cache=cache,
    )
    end = jax.lax.while_loop(
        lambda state: (state.position < length) & jnp.any(state.searching), body, start
    )
    return end.done if theirs else _of_t5x(end)


def _of_t5x(end: _Beam) -> Answers:
    """What T5X answers, the best first: hypotheses that did not end count where none did."""
    ended = jnp.max(end.done.score, axis=1, keepdims=True) > NEVER / 2
    words = jnp.where(ended[..., None], end.done.words, end.words)
    scores = (jnp.where(ended, x, end.live) for x in (end.done.score, end.done.rank_score))
    return Answers(*(x[:, ::-1] for x in (words, *scores)))
