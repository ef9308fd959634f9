"""Searches for answers: greedy, sampling and beam search, of any model.

Letters: B sequences, K beams, L most tokens of an answer, V vocabulary.

The searches know no model: they call `step(tokens [B], kept, position) -> (logits [B, V], kept)`
and take its words until EOS. Shapes are static; a search ends when every sequence has ended.

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

Step = Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]
Choose = Callable[[jax.Array, jax.Array], jax.Array]  # (logits [B, V], position) -> words [B]
Allowed = Callable[[jax.Array, int], jax.Array]  # (position, V) -> bool [V], what may be chosen


def every_word(position: jax.Array, size: int) -> jax.Array:
    """All words may be chosen, padding too."""
    del position
    return jnp.ones(size, bool)


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
    step: Step,
    kept: Any,
    rows: int,
    length: int,
    choose: Choose = likeliest,
    allowed: Allowed = every_word,
) -> tuple[jax.Array, jax.Array]:
    """One answer a sequence, word by word.

    Args:
      step: the model.
      kept: what it keeps between words.
      rows: B.
      length: L.
      choose: takes a word; logits of words that may not be chosen are `NEVER`.
      allowed: the words that may be chosen.

    Returns:
      (int32 [B, L] words, padding after EOS; float32 [B] their log-probability).
    """

    def body(state: tuple) -> tuple:
        position, last, done, words, score, kept = state
        logits, kept = step(last, kept, position)
        open_to = jnp.where(allowed(position, logits.shape[-1]), logits, NEVER)
        word = jnp.where(done, PAD, choose(open_to, position))
        own = jnp.take_along_axis(logits, word[:, None], axis=-1)[:, 0]
        score += jnp.where(done, 0.0, own - jax.nn.logsumexp(logits, axis=-1))
        words = jax.lax.dynamic_update_slice_in_dim(words, word[:, None], position, axis=1)
        return position + 1, word, done | (word == EOS), words, score, kept

    def going(state: tuple) -> jax.Array:
        return (state[0] < length) & ~jnp.all(state[2])

    first = jnp.full(rows, PAD, jnp.int32)
    empty = jnp.full((rows, length), PAD, jnp.int32)
    begin = jnp.int32(0), first, jnp.zeros(rows, bool), empty, jnp.zeros(rows), kept
    state = jax.lax.while_loop(going, body, begin)
    return state[3], state[4]


def length_penalty(tokens: Any, alpha: float, rule: str = "t5x") -> Any:
    """What log-probabilities are divided by: of T5X ((5 + tokens) / 6)^alpha (arXiv 1609.08144), of
    transformers tokens^alpha. EOS is a token.
    """
    return ((5.0 + tokens) / 6.0 if rule == "t5x" else 1.0 * tokens) ** alpha


class Answers(NamedTuple):
    """What a beam search found, best first; scores of `NEVER` or less mean that there are fewer."""

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
    kept: Any


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """[B, M, ..] and [B, K] -> [B, K, ..]."""
    return jax.vmap(lambda row, i: row[i])(x, index)


def _at(words: jax.Array, position: jax.Array) -> jax.Array:
    """[B, M, L] -> [B, M], the words at a position."""
    return jax.lax.dynamic_slice_in_dim(words, position, 1, axis=2)[..., 0]


def _continued(
    step: Step, state: _Beam, allowed: Allowed
) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
    """The 2K likeliest continuations, likeliest first: (log-probabilities [B, 2K], words
    [B, 2K, L], the hypotheses they continue [B, 2K], kept).
    """
    rows, beams, _ = state.words.shape
    last = jnp.where(state.position > 0, _at(state.words, state.position - 1), PAD)
    logits, kept = step(last.reshape(-1), state.kept, state.position)
    size = logits.shape[-1]
    shares = jnp.where(allowed(state.position, size), jax.nn.log_softmax(logits), NEVER)
    total = shares.reshape(rows, beams, size) + state.live[..., None]
    best, place = jax.lax.top_k(total.reshape(rows, -1), min(2 * beams, beams * size))
    parents, word = place // size, (place % size).astype(jnp.int32)
    words = jax.lax.dynamic_update_slice_in_dim(
        _pick(state.words, parents), word[..., None], state.position, axis=2
    )
    return best, words, parents, kept


def beam_search(
    step: Step,
    kept: Any,
    rows: int,
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
    likeliest of the others go on. The rules differ in the rest:

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
      step: the model, on B*K sequences, K of the same input in a row.
      kept: what it keeps between words.
      rows: B.
      length: L.
      beams: K.
      alpha: of the length penalty.
      reorder: (kept, parents [B, K]) -> kept in which hypothesis k of a row goes on from its
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
        """(the K largest [B, K], their places), in the order in which the library keeps beams."""
        found = jax.lax.top_k(values, beams)
        return found if theirs else (found[0][:, ::-1], found[1][:, ::-1])

    def merged(done: Answers, *more: jax.Array) -> Answers:
        every = [jnp.concatenate(pair, axis=1) for pair in zip(done, more, strict=True)]
        _, index = best_of(every[-1])
        return Answers(*(_pick(x, index) for x in every))

    def body(state: _Beam) -> _Beam:
        best, words, parents, kept = _continued(step, state, allowed)
        tokens = state.position + 1
        ends = _at(words, state.position) == EOS
        ends |= theirs & (tokens == length)
        counts = ends & (best > NEVER / 2) & state.searching[:, None]
        if theirs:
            counts &= jnp.arange(ends.shape[1]) < beams
        penalty = length_penalty(tokens, alpha, rule)
        score = jnp.where(counts, best, 2 * NEVER)
        rank = jnp.where(counts, best / penalty, 2 * NEVER)
        done = merged(state.done, words, score, rank)
        live, going_on = best_of(jnp.where(ends, 2 * NEVER, best))
        hope, worst = jnp.max(live, axis=1), jnp.min(done.rank_score, axis=1)
        # T5X has L + 1 words here, which needs more steps now and then and finds the same.
        better = hope / penalty > worst if theirs else hope / longest >= worst
        return _Beam(
            tokens,
            _pick(words, going_on),
            jnp.maximum(live, 2 * NEVER),
            done,
            state.searching & better & (hope > NEVER / 2),
            reorder(kept, jnp.take_along_axis(parents, going_on, axis=1)),
        )

    longest = length_penalty(length, alpha, rule)
    empty = jnp.full((rows, beams, length), PAD, jnp.int32)
    live = jnp.where(jnp.arange(beams) == 0, 0.0, NEVER) * jnp.ones((rows, 1))
    none = jnp.full((rows, beams), 2 * NEVER)
    begin = _Beam(
        *(jnp.int32(0), empty, live, Answers(empty, none, none), jnp.ones(rows, bool), kept)
    )
    end = jax.lax.while_loop(
        lambda state: (state.position < length) & jnp.any(state.searching), body, begin
    )
    return end.done if theirs else _of_t5x(end)


def _of_t5x(end: _Beam) -> Answers:
    """What T5X answers, the best first: hypotheses that did not end count where none did."""
    ended = jnp.max(end.done.score, axis=1, keepdims=True) > NEVER / 2
    words = jnp.where(ended[..., None], end.done.words, end.words)
    scores = (jnp.where(ended, x, end.live) for x in (end.done.score, end.done.rank_score))
    return Answers(*(x[:, ::-1] for x in (words, *scores)))
