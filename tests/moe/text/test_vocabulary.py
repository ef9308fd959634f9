"""Ids of the vocabularies, and vocabulary files that do not serve."""

import pickle
from pydoc_data.topics import topics

import numpy as np
import pytest

from moe.data import check_vocabulary, make_vocabulary
from trainlib.errors import ConfigError, DataError


@pytest.fixture
def vocabulary(data_config):
    return make_vocabulary(data_config())


def test_byte_ids_are_those_of_byt5(vocabulary):
    # ByT5: padding 0, end of sequence 1, unknown 2, byte b is b + 3; "ä" is the bytes c3 a4.
    assert vocabulary.encode("aä\x00").tolist() == [97 + 3, 0xC3 + 3, 0xA4 + 3, 0 + 3]
    assert vocabulary.size == 3 + 256 + 100


@pytest.mark.parametrize("text", ["", "plain", "naïve 文字 \U0001f600\n", "\x00\x7f"])
def test_bytes_come_back(vocabulary, text):
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    # Padding, end of sequence and sentinels give nothing.
    assert vocabulary.decode(np.concatenate([ids, [358, 1, 0, 0]])) == text


def test_a_cut_character_is_left_out(vocabulary):
    assert vocabulary.decode(vocabulary.encode("aä")[:-1]) == "a"


def test_digest_tells_sentinels(data_config, vocabulary):
    assert make_vocabulary(data_config(extra_ids=50)).digest != vocabulary.digest


def test_vocabulary_larger_than_the_model(vocabulary):
    check_vocabulary(vocabulary, 359)
    with pytest.raises(DataError, match=r"bytes has 359 ids.*the model has 358.*vocab_size=384"):
        check_vocabulary(vocabulary, 358)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"vocabulary": "byte"}, "Did you mean 'bytes'"),
        ({"vocabulary": "sentencepiece:"}, "not known"),
        ({"extra_ids": -1}, "negative"),
    ],
)
def test_impossible_settings(data_config, setting, message):
    with pytest.raises(ConfigError, match=message):
        make_vocabulary(data_config(**setting))


def test_absent_file(data_config, tmp_path):
    with pytest.raises(DataError, match="No such file"):
        make_vocabulary(data_config(vocabulary=f"sentencepiece:{tmp_path}/absent.model"))


@pytest.fixture(scope="module")
def train_pieces(tmp_path_factory):
    trainer = pytest.importorskip("sentencepiece", reason="needs sentencepiece, extra [text]")
    corpus = tmp_path_factory.mktemp("pieces") / "corpus.txt"
    corpus.write_text("".join(topics[name] for name in sorted(topics)[:4]))

    def train(name, **ids):
        trainer.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(corpus.parent / name),
            vocab_size=150,
            minloglevel=2,
            **ids,
        )
        return corpus.parent / f"{name}.model"

    return train


T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def test_sentencepiece_ids(data_config, train_pieces):
    model = train_pieces("good", **T5_IDS)
    vocabulary = make_vocabulary(data_config(vocabulary=f"sentencepiece:{model}"))
    ids = vocabulary.encode("the value is not raised")
    assert vocabulary.size == 250
    assert ids.min() > 1
    assert ids.max() < 150
    assert vocabulary.decode(np.concatenate([ids, [249, 1, 0]])) == "the value is not raised"
    again = pickle.loads(pickle.dumps(vocabulary))
    np.testing.assert_array_equal(again.encode("the type"), vocabulary.encode("the type"))


def test_sentencepiece_with_other_special_ids(data_config, train_pieces):
    model = train_pieces("defaults")  # SentencePiece's own: unknown 0, begin 1, end 2, no padding
    with pytest.raises(DataError, match=r"\(-1, 2, 0\).*--pad_id=0"):
        make_vocabulary(data_config(vocabulary=f"sentencepiece:{model}"))


def test_no_sentencepiece_model(data_config, tmp_path):
    pytest.importorskip("sentencepiece", reason="needs sentencepiece, extra [text]")
    (tmp_path / "notes.model").write_text("hello")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        make_vocabulary(data_config(vocabulary=f"sentencepiece:{tmp_path}/notes.model"))


@pytest.fixture(scope="module")
def with_sentinels(train_pieces):
    """A model that ends in its own 3 sentinels, as mT5's in 100; and the same without them."""
    from sentencepiece import sentencepiece_model_pb2

    plain = train_pieces("own", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    model = sentencepiece_model_pb2.ModelProto.FromString(plain.read_bytes())
    for number in (2, 1, 0):
        model.pieces.add(piece=f"\u2581<extra_id_{number}>", score=0.0, type=4)  # USER_DEFINED
    path = plain.with_name("sentinels.model")
    path.write_bytes(model.SerializeToString())
    return path, plain


def test_sentinels_of_the_model_are_used_and_none_are_added(data_config, with_sentinels):
    path, plain = with_sentinels
    ours = make_vocabulary(data_config(vocabulary=f"sentencepiece:{path}", extra_ids=3))
    same = make_vocabulary(data_config(vocabulary=f"sentencepiece:{plain}", extra_ids=3))
    assert (ours.size, ours.extra_ids) == (same.size, 3)
    ids = ours.encode("a word")
    np.testing.assert_array_equal(ids, same.encode("a word"))
    # The highest id is the first sentinel, and stands for no text.
    assert ours.decode(np.concatenate([ids, [ours.size - 1]])) == "a word"
    assert ours.pieces(np.asarray([ours.size - 3])) == [b""]
    assert ours.digest != same.digest


@pytest.mark.parametrize("count", [0, 2, 100])
def test_another_number_of_sentinels_than_the_model_has(data_config, with_sentinels, count):
    with pytest.raises(ConfigError, match=r"ends in 3 sentinels.*extra_ids=3"):
        make_vocabulary(
            data_config(vocabulary=f"sentencepiece:{with_sentinels[0]}", extra_ids=count)
        )
