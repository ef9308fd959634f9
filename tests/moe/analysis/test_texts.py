"""Rows of tokens as text: what spans took apart is put together, and words keep their class."""

import numpy as np
import pytest

from moe.analysis import words
from moe.analysis.record import Record, StackRecord
from moe.analysis.texts import PLACES, Texts, is_sentinel, original, shown_token
from moe.data.denoisers.span_corruption import SpanCorruption
from moe.data.sources.packing import fill_batch
from moe.text.vocabulary import ByteVocabulary, make_vocabulary

VOCABULARY = ByteVocabulary(100)
TEXT = "In Zürich, 12 trains were going north; the red one\u2019s name is »Ada«. " * 3


def corrupted(text, seed=0):
    corruption = SpanCorruption(0.15, 3.0, VOCABULARY.size)
    return corruption.examples([VOCABULARY.encode(text)], [(seed, 0, 0)])[0][0]


def record_of(examples):
    """One row that holds the examples, of a model whose routers nobody asks."""
    batch = fill_batch([examples], 400, 200)
    stacks = {}
    for stack in ("encoder", "decoder"):
        tokens, shape = batch[f"{stack}_inputs"], (0, *batch[f"{stack}_inputs"].shape, 1)
        targets = batch["decoder_targets"] if stack == "decoder" else tokens
        nothing = np.zeros(shape, np.uint8)
        stacks[stack] = StackRecord(
            tokens,
            batch[f"{stack}_segments"],
            targets,
            nothing,
            nothing,
            nothing,
            nothing[..., 0],
            (),
            0,
        )
    return Record(stacks, np.zeros(1, np.int32), ("",), {}), batch


@pytest.mark.parametrize("seed", range(5))
def test_corrupted_text_is_put_together(seed):
    inputs, targets = corrupted(TEXT, seed)
    (order,) = original(inputs, targets, VOCABULARY)
    assert sorted(order) == list(range(len(inputs) + len(targets)))
    ids = np.concatenate([inputs, targets])[order]
    assert VOCABULARY.decode(ids) == TEXT
    hidden = ids[~is_sentinel(ids, VOCABULARY)]
    np.testing.assert_array_equal(hidden, VOCABULARY.encode(TEXT))


def test_pairs_stay_apart():
    inputs, targets = VOCABULARY.encode("a question"), VOCABULARY.encode("yes")
    parts = original(inputs, targets, VOCABULARY)
    assert [len(part) for part in parts] == [10, 3]
    # Sentinels of fine-tuning end the inputs and begin the targets; others fill no gap.
    sentinel = VOCABULARY.size - 1
    parts = original(np.append(inputs, sentinel), np.append([sentinel - 1], targets), VOCABULARY)
    assert [len(part) for part in parts] == [11, 4]


def test_words_keep_their_class_when_a_span_cuts_them():
    """Every byte of both stacks has the class that its word has in the whole text."""
    record, batch = record_of([corrupted(TEXT, 1), corrupted(TEXT, 2)])
    texts = Texts(record, VOCABULARY)
    wanted = {}
    for start, stop, kind in words.split(TEXT):
        wanted.setdefault(TEXT[start:stop].lower(), set()).add(kind)
    seen = set()
    for facts, stack in ((texts.read["encoder"], "encoder"), (texts.predicted, "decoder")):
        tokens = batch["encoder_inputs" if stack == "encoder" else "decoder_targets"][0]
        segments = batch[f"{stack}_segments"][0]
        assert (facts.kind[0][segments == 0] == -1).all()
        for place in np.flatnonzero(segments):
            kind = words.CLASSES[facts.kind[0, place]]
            word = texts.words[facts.word[0, place]]
            if is_sentinel(tokens[place], VOCABULARY):
                assert kind == words.SENTINEL
            elif tokens[place] == 1:
                assert kind == words.END
            else:
                assert kind in wanted[word]
                assert texts.letters[facts.letter[0, place]] == word[0]
                seen.add(word)
    assert {"zürich", "12", "going", "north", "the", "one\u2019s", "»", " "} <= seen


def test_a_decoder_reads_what_it_had_to_predict_before():
    record, batch = record_of([corrupted(TEXT, 3)])
    texts = Texts(record, VOCABULARY)
    size = int(batch["decoder_segments"].sum())
    read, predicted = texts.read["decoder"].kind[0], texts.predicted.kind[0]
    assert words.CLASSES[read[0]] == words.START
    np.testing.assert_array_equal(read[1:size], predicted[: size - 1])


def test_places_in_words():
    record, _ = record_of([(VOCABULARY.encode("the é."), VOCABULARY.encode("x"))])
    place = Texts(record, VOCABULARY).read["encoder"].place[0][:8]
    assert [PLACES[n] for n in place] == [
        *("begins a word", "inside of a word", "ends a word", "outside of words"),
        *("begins a word", "ends a word", "outside of words", "outside of words"),
    ]


def test_sentencepiece_pieces(data_config, tmp_path):
    trainer = pytest.importorskip("sentencepiece", reason="needs sentencepiece, extra [text]")
    (tmp_path / "text").write_text("the trains were going north and south\n" * 50)
    trainer.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "m"),
        **{"vocab_size": 280, "byte_fallback": True, "hard_vocab_limit": False},
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
    vocabulary = make_vocabulary(data_config(vocabulary=f"sentencepiece:{tmp_path}/m.model"))
    ids = vocabulary.encode("the trains ☃")
    assert b"".join(vocabulary.pieces(ids)).decode().strip() == "the trains ☃"
    assert vocabulary.pieces(np.asarray([0, 1, 2, vocabulary.size - 1])) == [b""] * 4
    assert shown_token(vocabulary.size - 1, vocabulary) == "<0>"
