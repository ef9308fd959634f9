"""Decoding with a model against the uncached model."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.decoding import model as decode
from moe.decoding import search
from moe.decoding.model import Decoding
from moe.text.vocabulary import EOS
from trainlib.errors import ConfigError
from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("method", "bream"), ("num_beams", 0), ("temperature", 0.0), ("top_p", 0.0)],
        *[("beam_rule", "t5"), ("num_return_sequences", 0), ("min_length", -1)],
    ],
)
def test_options_that_cannot_work_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"decoding.{option}"):
        Decoding(**{option: value})


def test_more_answers_than_there_can_be_are_refused():
    """What the message advises works."""
    with pytest.raises(ConfigError, match=r"num_return_sequences.*method 'beam' or 'sample'"):
        Decoding(num_return_sequences=2)
    with pytest.raises(ConfigError, match=r"num_return_sequences.*decoding\.num_beams=4"):
        Decoding("beam", num_return_sequences=5)
    for options in ({"num_return_sequences": 4}, {"num_return_sequences": 5, "num_beams": 5}):
        assert Decoding("beam", **options).num_return_sequences == options["num_return_sequences"]
    assert Decoding("sample", num_return_sequences=99).num_return_sequences == 99


def test_a_minimum_above_the_length_is_refused_before_anything_is_compiled(small):
    for options, length in ((Decoding(min_length=7), 6), (Decoding(min_length=7, max_length=6), 9)):
        with pytest.raises(ConfigError, match=r"min_length.*decoding\.max_length, which is 6"):
            decode.make_generate(small(), options, length, 40)
    decode.make_generate(small(), Decoding(min_length=6), 6, 40)


@pytest.fixture(scope="module")
def model(small, made):
    """A sparse model of two periods and a part of one, whose training capacity would drop tokens in
    its decoder, whose relative positions are not T5's, and whose routers see how often the layers
    before took a token.
    """
    config = small(
        encoder_blocks=2,
        decoder_blocks=5,
        partial_period=True,
        relative_attention_num_buckets=4,
        relative_attention_max_distance=5,
        sparse_offset=0,
        extra_ffn="before",
        router_history=True,
        expert_embedding=True,
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


@pytest.mark.slow
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

        def step(cache, piece):
            position, word = piece
            logits, cache = bound.decode_step(word, cache, position, segments)
            return cache, logits

        cache = bound.init_cache(8, 9, encoded)
        return jax.lax.scan(step, cache, (jnp.arange(6), jnp.asarray(words).T))[1]

    expected = uncached(words)
    found = np.asarray(stepwise(params, inputs)).swapaxes(0, 1)
    assert np.abs(expected).max() > 1
    assert np.abs(found - expected).max() < 2e-5


@pytest.mark.thorough
def test_rows_are_at_places_of_their_own(model, inputs, uncached, quick):
    """Row b begins b steps after the first, in a cache that another sequence has filled before."""
    _, abstract, params = model
    words = np.random.default_rng(2).integers(2, 48, (8, 6), dtype=np.int32)
    words[:, 0] = 0

    @quick
    def staggered(params, batch):
        bound = abstract.bind(params, {})
        segments = batch["encoder_segments"]
        encoded, _ = bound.encode(batch["encoder_inputs"], segments, train=False)
        fresh = bound.init_cache(8, 9, encoded)
        assert all(leaf.shape[0] == 8 for leaf in jax.tree.leaves(fresh))
        used = bound.init_cache(8, 9, encoded[::-1])
        used = jax.tree.map(lambda leaf: leaf + (leaf == 0), used)
        rows = jnp.arange(8)
        cache = jax.tree.map(lambda old, new: old.at[rows].set(new), used, fresh)

        def step(cache, time):
            position = jnp.clip(time - rows, 0, 5)
            word = jnp.take_along_axis(jnp.asarray(words), position[:, None], 1)[:, 0]
            logits, cache = bound.decode_step(word, cache, position, segments)
            return cache, logits

        return jax.lax.scan(step, cache, jnp.arange(13))[1]

    found, expected = np.asarray(staggered(params, inputs)), uncached(words)
    for row in range(8):
        assert np.abs(found[row : row + 6, row] - expected[row]).max() < 2e-5


@pytest.fixture(scope="module")
def decoded(model, inputs, quick):
    """`decoded(method, batch, params)`: answers; each method is compiled once."""
    config, _, params = model

    @functools.cache
    def compiled(method):
        options = Decoding(method=method, num_beams=4, seed=3, top_k=10)
        return quick(decode.make_generate(config, options, 6, 40))

    def run(method, batch=inputs, params=params):
        return jax.tree.map(np.asarray, compiled(method)(params, {}, batch))

    return run


def test_one_beam_is_greedy(model, inputs):
    """It is the same program."""
    config, _, params = model
    greedy, one, two = (
        str(jax.make_jaxpr(decode.make_generate(config, options, 6, 40))(params, {}, inputs))
        for options in (Decoding(), Decoding("beam", num_beams=1), Decoding("beam", num_beams=2))
    )
    assert greedy == one
    assert greedy != two


@pytest.mark.slow
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

    def step(tokens, cache, position):
        cache = cache.at[:, position].set(tokens)
        shape = jax.ShapeDtypeStruct((8 * beams, 48), jnp.float32)
        logits = jax.pure_callback(logits_of, shape, cache, position)
        return logits, cache

    def allowed(position, size):
        return (jnp.arange(size) != 0) & (jnp.arange(size) < 40)

    def moved(cache, parents):
        cache = cache.reshape(8, beams, length)
        return jnp.take_along_axis(cache, parents[..., None], axis=1).reshape(-1, length)

    cache = jnp.zeros((8 * beams, length), jnp.int32)
    words, scores, ranks = decode.beam_search(step, cache, 8, length, beams, 0.6, moved, allowed)
    found = decoded("beam", params=params)
    assert 0 < (found["words"] == EOS).sum() < 8
    np.testing.assert_array_equal(found["words"], words[:, 0])
    np.testing.assert_allclose(found["score"], scores[:, 0], atol=1e-4)
    np.testing.assert_allclose(found["rank_score"], ranks[:, 0], atol=1e-4)


@pytest.fixture(scope="module")
def scored(model, inputs, quick):
    """`scored(candidates [8, 3, 6])`: their scores."""
    config, _, params = model
    score = quick(decode.make_score(config))
    return lambda candidates: np.asarray(score(params, {}, inputs | {"candidates": candidates}))


@pytest.mark.slow
def test_greedy_answers_score_what_the_scorer_says(decoded, uncached, scored):
    found = decoded("greedy")
    assert found["words"].shape == (8, 6)
    assert found["words"].max() < 40
    ended = (found["words"] == EOS).any(axis=1)
    assert 0 < ended.sum() < 8
    others = np.zeros((8, 3, 6), np.int32)
    others[:, 1] = found["words"]
    others[:, 2, :2] = (5, EOS)
    scores = scored(others)
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
    # Cut answers too: both scores are those of the words that are there.
    np.testing.assert_allclose(found["score"], scores[:, 1], atol=1e-4)


def test_beams_are_no_worse_than_greedy(decoded):
    greedy, two = decoded("greedy"), decoded("beam")
    ended = (greedy["words"] == EOS).any(axis=1)
    sizes = (greedy["words"] != 0).sum(axis=1)
    own = greedy["score"] / search.length_penalty(sizes, 0.6)
    assert (two["rank_score"][ended] >= own[ended] - 1e-5).all()
    assert (two["words"] != greedy["words"]).any()


@pytest.mark.thorough
def test_sampled_answers_do_not_depend_on_the_batch(inputs, decoded):
    whole = decoded("sample")
    part = {name: np.roll(value, 3, axis=0) for name, value in inputs.items()}
    turned = decoded("sample", part)
    np.testing.assert_array_equal(np.roll(whole["words"], 3, axis=0), turned["words"])
    assert len({tuple(row) for row in whole["words"].tolist()}) > 4


@pytest.mark.thorough
def test_several_draws_are_independent_and_the_first_is_that_of_one(
    model, inputs, decoded, scored, quick
):
    """In the order drawn; scores are log-probabilities of the model, not at the temperature drawn
    with nor among the ten likeliest.
    """
    config, _, params = model
    options = Decoding("sample", seed=3, top_k=10, num_return_sequences=3)
    found = quick(decode.make_generate(config, options, 6, 40))(params, {}, inputs)
    assert found["words"].shape == (8, 3, 6)
    first = decoded("sample")
    np.testing.assert_array_equal(found["words"][:, 0], first["words"])
    np.testing.assert_allclose(found["score"][:, 0], first["score"], atol=1e-4)
    words = np.asarray(found["words"])
    assert sum(len({tuple(w) for w in row.tolist()}) == 3 for row in words) > 4
    np.testing.assert_allclose(found["score"], scored(words), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "method"), [((2, 2, 2), "beam"), ((1, 8, 1), "greedy")], ids=str)
def test_eight_devices_decode_as_one(model, inputs, decoded, shape, method):
    config, _, params = model
    mesh = make_mesh(*shape)
    rules = {
        "batch": ("replica", "data", "model"),
        "layer_batch": ("replica", "data"),
        "embed": "data",
        "expert": "data" if shape[1] <= 4 else None,
        "heads": "model",
        "head": "model",
        "mlp": "model",
        "vocab": "model",
        "table": "model",
        "expert_mlp": "model",
    }
    rules |= dict.fromkeys(
        ("period", "layer", "norm", "buckets", "tokens", "expert_embed", "router")
    )
    rows = batch_sharding(rules, mesh)
    made = decode.make_generate(config, Decoding(method=method, num_beams=4), 6, 40)

    def on_mesh(params, batch):
        with activate(mesh, rules):
            return made(params, {}, batch)

    batch = {name: jax.device_put(value, rows) for name, value in inputs.items()}
    found, expected = jax.jit(on_mesh)(params, batch), decoded(method)
    np.testing.assert_array_equal(found["words"], expected["words"])
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-4)


def test_a_decoder_alone_is_refused(small):
    with pytest.raises(ConfigError, match="encoder_decoder"):
        decode.decoding_model(small(kind="decoder"))
