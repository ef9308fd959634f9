"""Searches against slow, plain references over a table of probabilities."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.decoding import search
from moe.text.vocabulary import EOS
from trainlib.errors import ConfigError

# A toy language of four words (0 is padding, 1 ends) in which a word depends on the whole prefix.
V, L = 4, 3


def toy(seed: int, rows: int, length: int = L):
    """`logits[prefix]` float64 [V] for each row and every prefix of fewer words than `length`."""
    rng = np.random.default_rng(seed)
    prefixes = [p for n in range(length) for p in itertools.product(range(V), repeat=n)]
    tables = []
    for _ in range(rows):
        table = {p: rng.normal(size=V) * 1.5 for p in prefixes}
        for logits in table.values():
            logits[0] = search.NEVER  # padding is no word
        tables.append(table)
    return tables


def toy_step(tables, beams: int, length: int = L):
    """The same as a step function; it keeps the prefix as a number in base V."""
    codes = sum(V**n for n in range(length))
    dense = np.full((len(tables), codes, V), 0.0, np.float32)
    for row, table in enumerate(tables):
        for prefix, logits in table.items():
            dense[row, code(prefix)] = logits
    dense = jnp.asarray(np.repeat(dense, beams, axis=0))

    def step(tokens, cache, position):
        first = jnp.asarray([sum(V**n for n in range(k)) for k in range(length)])[position]
        value = jnp.where(position > 0, cache * V + tokens, 0)
        return dense[jnp.arange(len(dense)), first + value], value

    return step, jnp.zeros(len(dense), jnp.int32)


def code(prefix) -> int:
    value = 0
    for word in prefix:
        value = value * V + word
    return sum(V**n for n in range(len(prefix))) + value


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x)))


def answers(table, alpha: float):
    """Every answer that ends within L words -> its score; exhaustive."""
    found = {}
    for size in range(1, L + 1):
        for body in itertools.product(range(2, V), repeat=size - 1):
            words = (*body, EOS)
            total = sum(log_softmax(table[words[:i]])[words[i]] for i in range(size))
            found[words] = total / ((5 + size) / 6) ** alpha
    return found


def reorder(cache, parents):
    rows, beams = parents.shape
    return jnp.take_along_axis(cache.reshape(rows, beams), parents, axis=1).reshape(-1)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_a_full_beam_is_exhaustive_search(alpha):
    """7 answers end within 3 words (1 + 2 + 4). The last step has 4 hypotheses of 3 words each, so
    12 beams hold them all.
    """
    tables = toy(3, 4)
    step, cache = toy_step(tables, 12)
    words, totals, scores = jax.jit(
        lambda cache: search.beam_search(step, cache, 4, L, 12, alpha, reorder)
    )(cache)
    for row, table in enumerate(tables):
        best = sorted(answers(table, alpha).items(), key=lambda item: -item[1])
        assert len(best) == 7
        for k, (expected, score) in enumerate(best):
            padded = (*expected, *(0,) * (L - len(expected)))
            assert tuple(words[row, k].tolist()) == padded
            assert scores[row, k] == pytest.approx(score, abs=1e-5)
            penalty = search.length_penalty(len(expected), alpha)
            assert totals[row, k] == pytest.approx(score * penalty, abs=1e-5)
        assert (scores[row, 7:] <= search.NEVER).all()


def test_the_length_penalty_is_that_of_the_paper():
    # Four words: ((5 + 4) / 6) ** 0.6 = 1.5 ** 0.6 = exp(0.243279) = 1.27542
    assert search.length_penalty(4, 0.6) == pytest.approx(1.27542, abs=1e-5)
    assert search.length_penalty(1, 0.6) == 1.0


def t5x_beam(table, beams: int, alpha: float, length: int):
    """The K best answers by the rule of T5X, without its early end: [(score, words)]."""
    live, done = [(0.0, ())], []
    for size in range(1, length + 1):
        every = [
            (total + log_softmax(table[words])[word], (*words, word))
            for total, words in live
            for word in range(1, V)
            if table[words][word] > search.NEVER
        ]
        likeliest = sorted(every, reverse=True)[: 2 * beams]
        penalty = ((5 + size) / 6) ** alpha
        done += [(total / penalty, words) for total, words in likeliest if words[-1] == EOS]
        done = sorted(done, reverse=True)[:beams]
        live = [(total, words) for total, words in likeliest if words[-1] != EOS][:beams]
    return done or live


@pytest.mark.parametrize(("beams", "alpha"), [(2, 0.6), (3, 0.0), (4, 1.5)])
def test_beam_search_follows_the_rule_of_t5x(beams, alpha):
    """Words and scores of all K answers; in two rows no answer ends within the 5 words."""
    tables = toy(7, 24, 5)
    for table in tables[:2]:
        for logits in table.values():
            logits[EOS] = search.NEVER
    step, cache = toy_step(tables, beams, 5)
    words, _, scores = jax.jit(
        lambda cache: search.beam_search(step, cache, 24, 5, beams, alpha, reorder)
    )(cache)
    for row, table in enumerate(tables):
        expected = t5x_beam(table, beams, alpha, 5)
        assert len(expected) == beams
        for k, (score, answer) in enumerate(expected):
            assert tuple(words[row, k].tolist()) == (*answer, *(0,) * (5 - len(answer)))
            assert scores[row, k] == pytest.approx(score, abs=1e-5)
    assert not (np.asarray(words[:2]) == EOS).any()


def shares_step(shares):
    """A step with the same probabilities of (EOS, "2", "3") at a position, whatever the prefix."""
    logits = jnp.log(jnp.asarray([[1e-30, *row] for row in shares]))

    def step(tokens, cache, position):
        return jnp.repeat(logits[position][None], len(tokens), axis=0), cache

    return step


def test_the_length_penalty_decides_between_a_short_and_a_long_answer():
    """EOS at once: ln 0.4 = -0.9163. "2", EOS: ln(0.5 * 0.75) = -0.9808, over (7 / 6)^0.6 = 1.0969
    it is -0.8942.
    """
    step = shares_step([(0.4, 0.5, 0.1), (0.75, 0.2, 0.05), (0.9, 0.05, 0.05)])
    for alpha, answer, score in ((0.0, [EOS, 0, 0], -0.9163), (0.6, [2, EOS, 0], -0.8942)):
        cache = jnp.zeros(4, jnp.int32)
        words, _, scores = search.beam_search(step, cache, 1, 3, 4, alpha, reorder)
        assert words[0, 0].tolist() == answer
        assert scores[0, 0] == pytest.approx(score, abs=1e-4)


def test_the_search_ends_when_no_hypothesis_can_come_to_be_among_the_best():
    """Two beams. After two words the answers are EOS and "2", EOS, with ln 0.6 = -0.511 and, over
    the penalty (7 / 6)^0.6 of two words, ln(0.3 * 0.9) / 1.097 = -1.194; what goes on has at best
    ln(0.3 * 0.06) = -4.017, over the penalty (25 / 6)^0.6 = 2.354 of 20 words -1.706. With an alpha
    of 1.5 that is -4.017 / 8.505 = -0.472, better than ln(0.27) / 1.260 = -1.039: it goes on.
    """
    step = shares_step([(0.6, 0.3, 0.1), *[(0.9, 0.06, 0.04)] * 19])

    def steps(alpha):
        calls = []

        def counted(tokens, cache, position):
            jax.debug.callback(lambda: calls.append(1))
            return step(tokens, cache, position)

        search.beam_search(counted, jnp.zeros(2, jnp.int32), 1, 20, 2, alpha, reorder)
        jax.effects_barrier()
        return len(calls)

    assert steps(0.6) == 2
    assert steps(1.5) > 2


def test_greedy_takes_the_likeliest_word():
    """Also where it never ends an answer: then the words up to L count."""
    tables = toy(5, 32)
    for table in tables[:3]:
        for logits in table.values():
            logits[EOS] = -50
    step, cache = toy_step(tables, 1)
    greedy, scores = search.generate(step, cache, 32, L)
    for row, table in enumerate(tables):
        words, total = (), 0.0
        while len(words) < L and EOS not in words:
            shares = log_softmax(table[words])
            words, total = (*words, int(np.argmax(shares))), total + np.max(shares)
        assert tuple(greedy[row].tolist()) == (*words, *(0,) * (L - len(words)))
        assert scores[row] == pytest.approx(total, abs=1e-5)
    assert {len(set(row.tolist()) & {EOS}) for row in greedy[:3]} == {0}


def test_the_search_stops_when_all_have_ended():
    """A step that counts its calls: two words each, of 50 allowed; and none but the end."""

    def step(last, tokens, cache, position):
        word = jnp.where(position == last, EOS, 2)
        return jnp.zeros((3, V)).at[:, word].set(9.0), cache + 1

    def run(length, last):
        calls = []

        def counted(tokens, cache, position):
            jax.debug.callback(lambda: calls.append(1))
            return step(last, tokens, cache, position)

        words, _ = search.generate(counted, jnp.int32(0), 3, length)
        jax.effects_barrier()
        return words, len(calls)

    words, calls = run(50, 1)
    assert calls == 2
    assert words[:, :3].tolist() == [[2, EOS, 0]] * 3
    words, calls = run(50, 0)
    assert calls == 1
    assert words[:, :2].tolist() == [[EOS, 0]] * 3
    words, calls = run(2, 2)  # cut off before its end
    assert calls == 2
    assert words.tolist() == [[2, 2]] * 3


@pytest.mark.slow
def test_sampling_draws_from_the_words_that_are_allowed():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.15, 0.1]])) * jnp.ones((4000, 1))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4000))

    def shares(**options):
        words = search.sampler(keys, **options)(logits, jnp.int32(0))
        return np.bincount(np.asarray(words), minlength=4) / 4000

    # Three standard deviations of a share of 4,000 draws are at most 0.024.
    np.testing.assert_allclose(shares(temperature=1.0), [0.5, 0.25, 0.15, 0.1], atol=0.024)
    # p^2 over its sum 0.345: 0.7246, 0.1812, 0.0652, 0.0290
    np.testing.assert_allclose(
        shares(temperature=0.5), [0.7246, 0.1812, 0.0652, 0.0290], atol=0.024
    )
    np.testing.assert_allclose(shares(temperature=1.0, top_k=2), [2 / 3, 1 / 3, 0, 0], atol=0.024)
    # The first two hold 0.75 >= 0.7; the first alone 0.5 < 0.7.
    np.testing.assert_allclose(shares(temperature=1.0, top_p=0.7), [2 / 3, 1 / 3, 0, 0], atol=0.024)
    assert shares(temperature=1.0, top_p=1e-6).tolist() == [1, 0, 0, 0]
    # Both limits: 0.5 + 0.25 + 0.15 >= 0.85, and of these the first two.
    both = shares(temperature=1.0, top_k=2, top_p=0.85)
    np.testing.assert_allclose(both, [2 / 3, 1 / 3, 0, 0], atol=0.024)
    # More words than there are is no limit, and one word is the likeliest.
    assert (shares(temperature=1.0, top_k=99) == shares(temperature=1.0)).all()
    assert shares(temperature=1.0, top_k=1).tolist() == [1, 0, 0, 0]
    # What a sequence draws is its own: the same alone and among others.
    alone = search.sampler(keys[7:8], 1.0)(logits[:1], jnp.int32(3))
    among = search.sampler(keys, 1.0)(logits, jnp.int32(3))
    assert alone[0] == among[7]


def test_a_top_p_of_one_leaves_out_no_word():
    """The float32 sum of 30,000 shares passes 1 before the last of them, which are words still."""
    logits = jnp.log(jnp.arange(1, 30_001, dtype=jnp.float32)[::-1])[None]
    shares = jax.nn.softmax(logits[0])
    assert (jnp.cumsum(shares) - shares >= 1.0).any()
    program = jax.make_jaxpr(search.sampler(jax.random.split(jax.random.key(0), 1), 1.0))
    assert "top_k" not in str(program(logits, jnp.int32(0)))  # nor is anything sorted


def both(step, rows, length, beams, alpha=0.6, **options):
    """{rule: (words, scores, rank scores) as lists}."""
    cache = jnp.zeros(rows * beams, jnp.int32)
    return {
        rule: [
            np.asarray(x).tolist()
            for x in search.beam_search(
                step, cache, rows, length, beams, alpha, reorder, rule=rule, **options
            )
        ]
        for rule in search.BEAM_RULES
    }


def test_an_end_behind_the_likeliest_beams_counts_by_one_rule_only():
    """Two beams, (EOS, "2", "3") = (0.3, 0.36, 0.34), then (0.6, 0.3, 0.1). EOS is the third of the
    first continuations. ln 0.3 by itself beats "2", EOS with ln(0.36 * 0.6) = ln 0.216 and "3", EOS
    with ln 0.204; by the rule of transformers it was never an answer.
    """
    step = shares_step([(0.3, 0.36, 0.34), *[(0.6, 0.3, 0.1)] * 3])
    found = both(step, 1, 4, 2, alpha=0.0)
    assert found["t5x"][0][0] == [[EOS, 0, 0, 0], [2, EOS, 0, 0]]
    assert found["transformers"][0][0] == [[2, EOS, 0, 0], [3, EOS, 0, 0]]
    for _, scores, ranks in found.values():
        assert scores == ranks  # no penalty
    np.testing.assert_allclose(found["t5x"][1][0], np.log([0.3, 0.216]), atol=1e-5)
    np.testing.assert_allclose(found["transformers"][1][0], np.log([0.216, 0.204]), atol=1e-5)


def test_answers_of_one_token():
    """T5X has one answer that ends; transformers takes the likeliest as they are, here none of them
    ends. With an EOS among the likeliest both have it. Without any EOS T5X has them as they are.
    """
    found = both(shares_step([(0.2, 0.5, 0.3)]), 1, 1, 2)
    assert found["t5x"][0] == [[[EOS], [0]]]
    assert found["t5x"][1][0][0] == pytest.approx(np.log(0.2), abs=1e-5)
    assert found["t5x"][1][0][1] <= search.NEVER
    assert found["transformers"][0] == [[[2], [3]]]
    np.testing.assert_allclose(found["transformers"][1][0], np.log([0.5, 0.3]), atol=1e-5)
    found = both(shares_step([(0.6, 0.3, 0.1)]), 1, 1, 2)
    assert [words[0][0] for words, _, _ in found.values()] == [[EOS], [EOS]]

    def no_end(position, size):
        return jnp.arange(size) > EOS

    found = both(shares_step([(0.6, 0.3, 0.1)]), 1, 1, 2, allowed=no_end)
    for words, scores, ranks in found.values():
        assert words == [[[2], [3]]]
        np.testing.assert_allclose(scores[0], np.log([0.3, 0.1]), atol=1e-5)  # of all words
        assert scores == ranks


def test_equal_continuations_are_taken_in_the_order_of_the_library():
    """Four words of 1/4 each, everything ties. First step: 0 is forbidden, EOS, 2, 3 tie. T5X then
    has "2" as its last and best beam and "3" as the first, whose continuations therefore come first
    in the next step. The other rule has them in the order of words.
    """

    def step(tokens, cache, position):
        return jnp.zeros((len(tokens), V)), cache

    def allowed(position, size):
        return jnp.arange(size) > jnp.where(position < 1, EOS, 0)

    found = both(step, 2, 2, 2, alpha=0.0, allowed=allowed)
    assert found["t5x"][0] == [[[3, EOS], [2, EOS]]] * 2
    assert found["transformers"][0] == [[[2, EOS], [2, 2]]] * 2
    for _, scores, _ in found.values():
        np.testing.assert_allclose(scores, 2 * np.log(0.25), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rule", search.BEAM_RULES)
def test_a_row_is_answered_the_same_alone_and_among_rows_that_end_at_other_times(rule):
    """Bit by bit, though alone it stops many steps sooner."""
    tables = toy(11, 5, 5)
    for row, table in enumerate(tables):  # the first ends at once, the last late
        for logits in table.values():
            logits[EOS] += 4 - 3 * row
    options = {"alpha": 0.8, "reorder": reorder, "rule": rule}
    step, cache = toy_step(tables, 3, 5)
    among = search.beam_search(step, cache, 5, 5, 3, **options)
    assert len(set((np.asarray(among.words[:, 0]) != 0).sum(-1).tolist())) > 1
    for row in (0, 4):
        step, cache = toy_step(tables[row : row + 1], 3, 5)
        alone = search.beam_search(step, cache, 1, 5, 3, **options)
        for ours, theirs in zip(alone, among, strict=True):
            np.testing.assert_array_equal(ours[0], theirs[row])


def test_words_that_may_not_be_chosen_count_in_the_softmax():
    """Probabilities 0.4, 0.1, 0.3, 0.2 of padding, EOS, "2" and "3": greedy takes "2" with ln 0.3,
    and not with ln 0.5 = ln(0.3 / 0.6), which is what is left without padding. Then EOS, ln 0.1,
    where "2" and "3" may not follow.
    """
    logits = jnp.log(jnp.asarray([0.4, 0.1, 0.3, 0.2]))

    def step(tokens, cache, position):
        return jnp.repeat(logits[None], len(tokens), axis=0), cache

    def allowed(position, size):
        return jnp.where(position == 0, jnp.arange(size) > EOS, jnp.arange(size) == EOS)

    words, scores = search.generate(step, jnp.int32(0), 3, 3, allowed=allowed)
    assert words.tolist() == [[2, EOS, 0]] * 3
    np.testing.assert_allclose(scores, np.log(0.3 * 0.1), atol=1e-6)
    keys = jax.random.split(jax.random.key(0), 300)
    draw = search.sampler(keys, 2.0)
    words, scores = search.generate(step, jnp.int32(0), 300, 3, draw, allowed)
    expected = np.where(np.asarray(words)[:, 0] == 2, np.log(0.03), np.log(0.02))
    np.testing.assert_allclose(scores, expected, atol=1e-6)  # not those at temperature 2
    # sqrt(0.3) / (sqrt(0.3) + sqrt(0.2)) = 0.5505; three standard deviations are 0.086.
    assert (words[:, 0] == 2).mean() == pytest.approx(0.5505, abs=0.086)
    for found, totals, _ in both(step, 1, 2, 2, alpha=0.0, allowed=allowed).values():
        assert found == [[[2, EOS], [3, EOS]]]
        np.testing.assert_allclose(totals[0], np.log([0.03, 0.02]), atol=1e-6)


def test_an_unknown_rule_names_the_rules():
    with pytest.raises(ConfigError, match="'transformers'"):
        search.beam_search(None, None, 1, 1, 2, 0.0, reorder, rule="transformer")
