"""Decoding against slow, plain references: a table of probabilities, and the uncached model."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import decode
from moe.data.vocabulary import EOS
from moe.decode import Decoding
from trainlib import sharding
from trainlib.errors import ConfigError
from trainlib.mesh import make_mesh

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
            logits[0] = decode.NEVER  # padding is no word
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

    def step(tokens, kept, position):
        first = jnp.asarray([sum(V**n for n in range(k)) for k in range(length)])[position]
        value = jnp.where(position > 0, kept * V + tokens, 0)
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


def reorder(kept, parents):
    rows, beams = parents.shape
    return jnp.take_along_axis(kept.reshape(rows, beams), parents, axis=1).reshape(-1)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_a_full_beam_is_exhaustive_search(alpha):
    """7 answers end within 3 words (1 + 2 + 4). The last step has 4 hypotheses of 3 words each, so
    12 beams hold them all.
    """
    tables = toy(3, 4)
    step, kept = toy_step(tables, 12)
    words, scores = jax.jit(lambda kept: decode.beam_search(step, kept, 4, L, 12, alpha, reorder))(
        kept
    )
    for row, table in enumerate(tables):
        best = sorted(answers(table, alpha).items(), key=lambda item: -item[1])
        assert len(best) == 7
        for k, (expected, score) in enumerate(best):
            padded = (*expected, *(0,) * (L - len(expected)))
            assert tuple(words[row, k].tolist()) == padded
            assert scores[row, k] == pytest.approx(score, abs=1e-5)
        assert (scores[row, 7:] <= decode.NEVER).all()


def test_the_length_penalty_is_that_of_the_paper():
    # Four words: ((5 + 4) / 6) ** 0.6 = 1.5 ** 0.6 = exp(0.243279) = 1.27542
    assert decode.length_penalty(4, 0.6) == pytest.approx(1.27542, abs=1e-5)
    assert decode.length_penalty(1, 0.6) == 1.0


def t5x_beam(table, beams: int, alpha: float, length: int):
    """The K best answers by the rule of T5X, without its early end: [(score, words)]."""
    live, done = [(0.0, ())], []
    for size in range(1, length + 1):
        every = [
            (total + log_softmax(table[words])[word], (*words, word))
            for total, words in live
            for word in range(1, V)
            if table[words][word] > decode.NEVER
        ]
        likeliest = sorted(every, reverse=True)[: 2 * beams]
        penalty = ((5 + size) / 6) ** alpha
        done += [(total / penalty, words) for total, words in likeliest if words[-1] == EOS]
        done = sorted(done, reverse=True)[:beams]
        live = [(total, words) for total, words in likeliest if words[-1] != EOS][:beams]
    return done or [(total / penalty, words) for total, words in live]


@pytest.mark.parametrize(("beams", "alpha"), [(2, 0.6), (3, 0.0), (4, 1.5)])
def test_beam_search_follows_the_rule_of_t5x(beams, alpha):
    """Words and scores of all K answers; in two rows no answer ends within the 5 words."""
    tables = toy(7, 24, 5)
    for table in tables[:2]:
        for logits in table.values():
            logits[EOS] = decode.NEVER
    step, kept = toy_step(tables, beams, 5)
    words, scores = jax.jit(
        lambda kept: decode.beam_search(step, kept, 24, 5, beams, alpha, reorder)
    )(kept)
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

    def step(tokens, kept, position):
        return jnp.repeat(logits[position][None], len(tokens), axis=0), kept

    return step


def test_the_length_penalty_decides_between_a_short_and_a_long_answer():
    """EOS at once: ln 0.4 = -0.9163. "2", EOS: ln(0.5 * 0.75) = -0.9808, over (7 / 6)^0.6 = 1.0969
    it is -0.8942.
    """
    step = shares_step([(0.4, 0.5, 0.1), (0.75, 0.2, 0.05), (0.9, 0.05, 0.05)])
    for alpha, answer, score in ((0.0, [EOS, 0, 0], -0.9163), (0.6, [2, EOS, 0], -0.8942)):
        kept = jnp.zeros(4, jnp.int32)
        words, scores = decode.beam_search(step, kept, 1, 3, 4, alpha, reorder)
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

        def counted(tokens, kept, position):
            jax.debug.callback(lambda: calls.append(1))
            return step(tokens, kept, position)

        decode.beam_search(counted, jnp.zeros(2, jnp.int32), 1, 20, 2, alpha, reorder)
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
    step, kept = toy_step(tables, 1)
    greedy, scores = decode.generate(step, kept, 32, L)
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

    def step(last, tokens, kept, position):
        word = jnp.where(position == last, EOS, 2)
        return jnp.zeros((3, V)).at[:, word].set(9.0), kept + 1

    def run(length, last):
        calls = []

        def counted(tokens, kept, position):
            jax.debug.callback(lambda: calls.append(1))
            return step(last, tokens, kept, position)

        words, _ = decode.generate(counted, jnp.int32(0), 3, length)
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


def test_sampling_draws_from_the_words_that_are_allowed():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.15, 0.1]])) * jnp.ones((4000, 1))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4000))

    def shares(**options):
        words = decode.sampler(keys, **options)(logits, jnp.int32(0))
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
    alone = decode.sampler(keys[7:8], 1.0)(logits[:1], jnp.int32(3))
    among = decode.sampler(keys, 1.0)(logits, jnp.int32(3))
    assert alone[0] == among[7]


def test_a_top_p_of_one_leaves_out_no_word():
    """The float32 sum of 30,000 shares passes 1 before the last of them, which are words still."""
    logits = jnp.log(jnp.arange(1, 30_001, dtype=jnp.float32)[::-1])[None]
    shares = jax.nn.softmax(logits[0])
    assert (jnp.cumsum(shares) - shares >= 1.0).any()
    program = jax.make_jaxpr(decode.sampler(jax.random.split(jax.random.key(0), 1), 1.0))
    assert "top_k" not in str(program(logits, jnp.int32(0)))  # nor is anything sorted


@pytest.mark.parametrize(
    ("option", "value"), [("method", "bream"), ("beams", 0), ("temperature", 0.0), ("top_p", 0.0)]
)
def test_options_that_cannot_work_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"decoding.{option}"):
        Decoding(**{option: value})


# ------------------------------------------------------------------ the model


@pytest.fixture(scope="module")
def model(small, made):
    """A sparse model of two periods and a part of one, whose training capacity would drop tokens in
    its decoder, and whose relative positions are not T5's.
    """
    config = small(
        encoder_blocks=2,
        decoder_blocks=5,
        partial_period=True,
        relative_attention_num_buckets=4,
        relative_attention_max_distance=5,
        sparse_offset=0,
        extra_ffn="before",
        routing={"capacity_factor_eval": 0.5, "min_capacity": 1},
    )
    abstract = decode.decoding_model(config)
    weights = made(config)[1]
    weights["output.kernel"][:, EOS] *= 3  # some answers end early, some never
    return config, abstract, jax.device_put(weights)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    lengths = np.asarray([9, 4, 12, 1, 7, 12, 3, 5])[:, None]
    segments = (np.arange(12) < lengths).astype(np.int32)
    words = rng.integers(2, 48, (8, 12), dtype=np.int32) * segments
    return {"encoder_inputs": words, "encoder_segments": segments, "number": np.arange(8)}


@pytest.fixture(scope="module")
def uncached(model, inputs, quick):
    """`uncached(words [8, L], params)`: logits [8, L, V] of the word after each, in one pass."""
    _, abstract, params = model

    @quick
    def whole(params, batch, words):
        bound = abstract.bind(params, {})
        segments = batch["encoder_segments"]
        encoded, _ = bound.encode(batch["encoder_inputs"], segments, train=False)
        ones = jnp.ones_like(words)
        hidden, _ = bound.decode(words, ones, encoded, segments, train=False)
        return bound.logits(hidden)

    return lambda words, params=params: np.asarray(whole(params, inputs, words))


def test_cached_decoding_is_the_uncached_model_step_by_step(model, inputs, uncached, quick):
    """Random words in, max |logit difference| at every step; and a cache longer than needed."""
    _, abstract, params = model
    words = np.random.default_rng(2).integers(2, 48, (8, 6), dtype=np.int32)
    words[:, 0] = 0

    @quick
    def stepwise(params, batch):
        bound = abstract.bind(params, {})
        segments = batch["encoder_segments"]
        encoded, _ = bound.encode(batch["encoder_inputs"], segments, train=False)

        def step(kept, piece):
            position, word = piece
            logits, kept = bound.step(word, kept, position, segments)
            return kept, logits

        kept = bound.begin(8, 9, encoded)
        return jax.lax.scan(step, kept, (jnp.arange(6), jnp.asarray(words).T))[1]

    expected = uncached(words)
    found = np.asarray(stepwise(params, inputs)).swapaxes(0, 1)
    assert np.abs(expected).max() > 1
    assert np.abs(found - expected).max() < 2e-5


@pytest.fixture(scope="module")
def decoded(model, inputs, quick):
    """`decoded(method, batch, params)`: answers; each method is compiled once."""
    config, _, params = model

    @functools.cache
    def compiled(method):
        options = Decoding(method=method, beams=4, seed=3, top_k=10)
        return quick(decode.make_generate(config, options, 6, 40))

    def run(method, batch=inputs, params=params):
        return jax.tree.map(np.asarray, compiled(method)(params, {}, batch))

    return run


def test_one_beam_is_greedy(model, inputs):
    """It is the same program."""
    config, _, params = model
    greedy, one, two = (
        str(jax.make_jaxpr(decode.make_generate(config, options, 6, 40))(params, {}, inputs))
        for options in (Decoding(), Decoding("beam", beams=1), Decoding("beam", beams=2))
    )
    assert greedy == one
    assert greedy != two


def test_beams_keep_their_own_cache(model, decoded, uncached):
    """The same search over the model without a cache, which is given all words of a hypothesis.
    Answers end late, so that hypotheses change their places.
    """
    beams, length = 4, 6
    kernel = np.asarray(model[2]["output.kernel"]).copy()
    kernel[:, EOS] *= 0.3
    params = model[2] | {"output.kernel": kernel}

    def logits_of(words, position):
        places = [np.asarray(words)[k::beams] for k in range(beams)]
        logits = [uncached(part, params)[:, int(position)] for part in places]
        return np.stack(logits, axis=1).reshape(8 * beams, -1)

    def step(tokens, kept, position):
        kept = kept.at[:, position].set(tokens)
        shape = jax.ShapeDtypeStruct((8 * beams, 48), jnp.float32)
        logits = jax.pure_callback(logits_of, shape, kept, position)
        number = jnp.arange(48)
        return jnp.where((number != 0) & (number < 40), logits, decode.NEVER), kept

    def moved(kept, parents):
        kept = kept.reshape(8, beams, length)
        return jnp.take_along_axis(kept, parents[..., None], axis=1).reshape(-1, length)

    kept = jnp.zeros((8 * beams, length), jnp.int32)
    words, scores = decode.beam_search(step, kept, 8, length, beams, 0.6, moved)
    found = decoded("beam", params=params)
    assert 0 < (found["words"] == EOS).sum() < 8
    np.testing.assert_array_equal(found["words"], words[:, 0])
    np.testing.assert_allclose(found["score"], scores[:, 0], atol=1e-4)


def test_greedy_answers_score_what_the_scorer_says(model, inputs, decoded, uncached, quick):
    config, _, params = model
    found = decoded("greedy")
    assert found["words"].shape == (8, 6)
    assert found["words"].max() < 40
    ended = (found["words"] == EOS).any(axis=1)
    assert 0 < ended.sum() < 8
    others = np.zeros((8, 3, 6), np.int32)
    others[:, 1] = found["words"]
    others[:, 2, :2] = (5, EOS)
    scores = quick(decode.make_score(config))(params, {}, inputs | {"candidates": others})
    scores = np.asarray(scores)
    assert (scores[:, 0] == decode.NEVER).all()
    assert np.isfinite(scores).all()
    # Word by word from the uncached model, over all 48 rows of its table.
    for candidate in (1, 2):
        words = others[:, candidate]
        logits = uncached(np.pad(words[:, :-1], ((0, 0), (1, 0))))
        shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        own = np.take_along_axis(shares, words[..., None], axis=-1)[..., 0]
        expected = np.where(words != 0, own, 0).sum(axis=1)
        np.testing.assert_allclose(scores[:, candidate], expected, atol=1e-4)
    # Greedy words are the likeliest of the 38 allowed.
    assert (scores[ended, 1] <= found["score"][ended] + 1e-4).all()


def test_beams_are_no_worse_than_greedy(decoded):
    greedy, two = decoded("greedy"), decoded("beam")
    ended = (greedy["words"] == EOS).any(axis=1)
    sizes = (greedy["words"] != 0).sum(axis=1)
    own = greedy["score"] / decode.length_penalty(sizes, 0.6)
    assert (two["score"][ended] >= own[ended] - 1e-5).all()
    assert (two["words"] != greedy["words"]).any()


def test_sampled_answers_do_not_depend_on_the_batch(inputs, decoded):
    whole = decoded("sample")
    part = {name: np.roll(value, 3, axis=0) for name, value in inputs.items()}
    turned = decoded("sample", part)
    np.testing.assert_array_equal(np.roll(whole["words"], 3, axis=0), turned["words"])
    assert len({tuple(row) for row in whole["words"].tolist()}) > 4


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "method"), [((2, 2, 2), "beam"), ((1, 8, 1), "greedy")], ids=str)
def test_eight_devices_decode_as_one(model, inputs, decoded, shape, method):
    config, _, params = model
    mesh = make_mesh(*shape)
    rules = {
        "batch": ("replica", "data", "model"), "rows": ("replica", "data"), "embed": "data",
        "expert": "data" if shape[1] <= 4 else None, "heads": "model", "head": "model",
        "mlp": "model", "vocab": "model", "table": "model", "expert_mlp": "model",
    }  # fmt: skip
    rules |= dict.fromkeys(
        ("period", "layer", "norm", "buckets", "tokens", "expert_embed", "router")
    )
    rows = sharding.batch_sharding(rules, mesh)
    made = decode.make_generate(config, Decoding(method=method, beams=4), 6, 40)

    def on_mesh(params, batch):
        with sharding.activate(mesh, rules):
            return made(params, {}, batch)

    batch = {name: jax.device_put(value, rows) for name, value in inputs.items()}
    found, expected = jax.jit(on_mesh)(params, batch), decoded(method)
    np.testing.assert_array_equal(found["words"], expected["words"])
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-4)


def test_a_decoder_alone_is_refused(small):
    with pytest.raises(ConfigError, match="encoder_decoder"):
        decode.decoding_model(small(kind="decoder"))
