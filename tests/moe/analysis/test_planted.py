"""Routers that are planted are found: by parity, by letter, by position, by language, by chance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import moe
from moe.analysis import findings, properties, record
from moe.analysis.record import Record, StackRecord
from moe.text.vocabulary import EOS, ByteVocabulary

E, LENGTH, ROWS = 4, 64, 48
VOCABULARY = ByteVocabulary(100)
WORDS = ("apple", "Bob", "cat", "dog", "eggs", "for", "going", "the", "12", "red", "one")
ROUTING = moe.RoutingConfig(
    E, min_capacity=1, group_sequences=1, capacity_factor_eval=1.25, second_policy_eval="none"
)


@pytest.fixture(scope="module")
def text():
    """int32 [ROWS, LENGTH] of words in a random order, padded at the end, and their rows' label."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((ROWS, LENGTH), np.int32)
    for row in tokens:
        words = " ".join(rng.choice(WORDS, size=20))
        size = rng.integers(LENGTH // 2, LENGTH)
        row[:size] = VOCABULARY.encode(words)[:size]
        row[size] = EOS
    return tokens, np.arange(ROWS) % 3


@pytest.fixture(scope="module")
def layer():
    """A layer whose router sends what is one-hot in dimension e to expert e."""
    made = moe.SparseFFN(E, 8, ROUTING, rngs=nnx.Rngs(0))
    made.router[...] = 20 * jnp.eye(E)
    return jax.jit(lambda x, mask: made(x, mask, trace=True)[1].choices)


def planted(text, layer, wanted):
    """The record of a router that sends each token to its expert `wanted` [ROWS, LENGTH]."""
    tokens, label = text
    choices = jax.device_get(layer(np.eye(E, dtype=np.float32)[wanted], tokens > 0))
    stack = StackRecord(
        tokens=tokens,
        segments=(tokens > 0).astype(np.int32),
        targets=tokens,
        expert=choices.expert[None].astype(np.uint8),
        gate=choices.gate[None].astype(np.float16),
        placed=choices.placed[None],
        entropy=choices.entropy[None].astype(np.float16),
        blocks=(3,),
        experts=E,
    )
    return Record({"encoder": stack}, label, ("de", "en", "fr"), {})


def layer_of(found: findings.Findings) -> findings.Layer:
    return found.stacks["encoder"].layers[0]


def first_letters(tokens):
    """The first letter of each token's word, sign or blank, in Python's own words."""
    letters = np.full(tokens.shape, "", object)
    for row, ids in enumerate(tokens):
        text = VOCABULARY.decode(ids)
        start = 0
        for place, letter in enumerate(text):
            if place and (letter.isspace() or text[place - 1].isspace()):
                start = place
            letters[row, place] = text[start].lower()
        letters[row, len(text)] = "<end>"
    return letters


def test_parity(text, layer):
    found = layer_of(findings.find(planted(text, layer, text[0] % 2), VOCABULARY))
    best = found.explained[0]
    assert (best.name, best.values, best.share) == ("token number, even or odd", 2, 1.0)
    assert found.rule == {"token number, even or odd": [["even"], ["odd"], [], []]}
    # The token says it as well, and has more values.
    token = next(e for e in found.explained if e.name == properties.TOKEN)
    assert token.share == 1.0
    assert found.first[2:].tolist() == [0, 0]


def test_first_letter(text, layer):
    letters = first_letters(text[0])
    known = sorted(set(letters.ravel()) - {""})
    wanted = np.asarray([[known.index(v) % E if v else 0 for v in row] for row in letters])
    found = layer_of(findings.find(planted(text, layer, wanted), VOCABULARY))
    assert found.explained[0].name == "first letter of the word"
    assert found.explained[0].share == 1.0
    (rule,) = found.rule.values()
    shown = ["␣" if letter == " " else letter for letter in known]
    assert [sorted(own) for own in rule] == [sorted(shown[e::E]) for e in range(E)]
    # An expert's words begin with its letters, and the class of a word says much less.
    for expert in range(E):
        words = [typical.name for typical in found.typical_words[expert]]
        assert words
        assert {word if word[0] == "<" else word[0] for word in words} <= set(rule[expert])
    assert found.share_of(properties.CLASS) < 0.9


def test_position(text, layer):
    wanted = np.broadcast_to(np.arange(LENGTH) * 7 % E, text[0].shape)
    found = layer_of(findings.find(planted(text, layer, wanted), VOCABULARY))
    assert (found.explained[0].name, found.explained[0].share) == ("position", 1.0)
    (rule,) = found.rule.values()
    expected = [[str(n) for n in range(LENGTH) if n * 7 % E == e] for e in range(E)]
    longest = (text[0] > 0).sum(axis=1).max()
    assert rule == [[n for n in own if int(n) < longest] for own in expected]


def test_language(text, layer):
    wanted = np.broadcast_to(text[1][:, None], text[0].shape)
    found = layer_of(findings.find(planted(text, layer, wanted), VOCABULARY))
    assert (found.explained[0].name, found.explained[0].share) == (properties.LABEL, 1.0)
    assert {g.name: int(np.argmax(g.shares)) for g in found.labels} == {"de": 0, "en": 1, "fr": 2}
    assert all(group.entropy == group.high == 0 for group in found.labels)
    assert findings.divergence(found.labels) == pytest.approx(1)
    # Every row has one expert, which has room for a few of its tokens: the rest is dropped.
    placed = 1 - found.dropped_choices
    room = int(1.25 * LENGTH / E)
    assert placed == pytest.approx(ROWS * room / (text[0] > 0).sum())
    assert found.dropped_by_tenth[:3].tolist() == [0, 0, 0]
    assert found.dropped_by_tenth[4] == 1


def test_chance(text, layer):
    wanted = np.random.default_rng(1).integers(0, E, text[0].shape)
    found = layer_of(findings.find(planted(text, layer, wanted), VOCABULARY))
    assert all(abs(e.share) < 3 * e.noise for e in found.explained)
    assert max(e.share for e in found.explained) < 0.1
    assert not found.rule
    assert not any(group.specialised for group in [*found.classes, *found.labels])
    assert sum(map(len, found.typical_words)) + sum(map(len, found.typical_classes)) <= 1


def test_a_planted_router_in_a_whole_model(quick):
    """A router of a Transformer that sees the word embedding, which says the parity of the token,
    through `make_trace`'s own path: model, trace, record, findings."""
    config = moe.Architecture(
        vocab_size=512,
        **{"d_model": 8, "d_ff": 8, "num_heads": 1, "head_dim": 8, "dtype": "float32"},
        **{"encoder_blocks": 1, "decoder_blocks": 1, "sparse_period": 1, "remat": "none"},
        router_input="word",
        routing=dataclasses.replace(ROUTING, num_experts=2),
    )
    model = moe.Transformer(config, rngs=nnx.Rngs(0))
    table = np.zeros((512, 8), np.float32)
    table[np.arange(512), np.arange(512) % 2] = 1
    model.embedding.table[...] = table
    for stack in (model.encoder, model.decoder):
        router = np.zeros((1, 8, 2), np.float32)
        router[0, :2] = 20 * np.eye(2)
        stack.sparse.experts.router[...] = router
    rng = np.random.default_rng(2)
    tokens = rng.integers(3, 259, (6, 40), dtype=np.int32)

    class Plan:
        abstract = type("Bound", (), {"bind": staticmethod(lambda params, state: model)})
        model = config

    targets = rng.integers(3, 259, (6, 24), dtype=np.int32)
    batch = {
        "encoder_inputs": tokens,
        "encoder_segments": np.ones_like(tokens),
        "decoder_inputs": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_targets": targets,
        "decoder_segments": np.ones_like(targets),
    }
    recorder = record.Recorder(config)
    recorder.add(quick(record.make_trace(Plan))({}, {}, batch), 0)
    found = findings.find(recorder.record(("",), {}), VOCABULARY)
    for stack in ("encoder", "decoder"):
        (one,) = found.stacks[stack].layers
        assert one.rule == {"token number, even or odd": [["even"], ["odd"]]}
