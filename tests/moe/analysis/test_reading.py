"""Lines of a file as rows of a model: text that is corrupted, pairs, languages, bad lines."""

import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from moe.analysis import reading
from moe.analysis.texts import original
from moe.text.vocabulary import EOS, ByteVocabulary
from trainlib.errors import DataError

VOCABULARY = ByteVocabulary(100)


@pytest.fixture
def plan(data_config):
    def make(kind="encoder_decoder", **data):
        config = ConfigDict({"batch_size": 4, "eval_batch_size": 0})
        config.data = data_config(encoder_length=48, decoder_length=24, **data)
        return types.SimpleNamespace(config=config, model=types.SimpleNamespace(kind=kind))

    return make


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(found, label):
    with found.rows(label) as batches:
        return list(batches)


def test_text_is_corrupted_and_packed_by_language(plan, tmp_path):
    texts = [(f"line {n} " + "abc " * (2 * n + 1), ("en", "de")[n % 2]) for n in range(9)]
    path = written(tmp_path / "in.jsonl", [{"text": t, "language": name} for t, name in texts])
    found = reading.of_file(plan(), path, VOCABULARY)
    assert found.labels == ("en", "de")
    packed = 0
    for number, label in enumerate(found.labels):
        whole = []
        for batch in rows_of(found, number):
            assert batch["encoder_inputs"].shape == (4, 48)
            packed = max(packed, batch["encoder_segments"].max())
            for row in range(4):
                for segment in range(1, batch["encoder_segments"][row].max() + 1):
                    inputs = batch["encoder_inputs"][row][batch["encoder_segments"][row] == segment]
                    mine = batch["decoder_segments"][row] == segment
                    targets = batch["decoder_targets"][row][mine]
                    (order,) = original(inputs, targets, VOCABULARY)
                    whole.append(VOCABULARY.decode(np.concatenate([inputs, targets])[order]))
        assert "".join(whole) == "".join(text for text, name in texts if name == label)
    assert packed > 1  # short lines share rows


def test_text_goes_on_in_the_decoder_of_a_prefix_language_model(plan, tmp_path):
    path = written(tmp_path / "in.jsonl", [{"text": "abc" * 50}])
    (batch,) = rows_of(reading.of_file(plan(objective="prefix_lm"), path, VOCABULARY), 0)
    whole = []
    for row in range(4):
        for segment in range(1, batch["encoder_segments"][row].max() + 1):
            whole.append(batch["encoder_inputs"][row][batch["encoder_segments"][row] == segment])
            whole.append(batch["decoder_targets"][row][batch["decoder_segments"][row] == segment])
    assert VOCABULARY.decode(np.concatenate(whole)) == "abc" * 50


def test_pairs(plan, tmp_path):
    rows = [{"inputs": "a b", "targets": "c"}, {"inputs": "d"}]
    found = reading.of_file(plan(), written(tmp_path / "in.jsonl", rows), VOCABULARY)
    (batch,) = rows_of(found, 0)
    assert found.labels == ("",)
    assert VOCABULARY.decode(batch["encoder_inputs"][0]) == "a bd"
    assert VOCABULARY.decode(batch["decoder_targets"][0]) == "c"
    assert (batch["decoder_targets"][0] == EOS).sum() == 2
    assert not batch["encoder_segments"][1:].any()


def test_a_decoder_reads_on(plan, tmp_path):
    path = written(tmp_path / "in.jsonl", [{"text": "abc" * 20}])
    asked = plan("decoder", objective="language_model")
    (batch,) = rows_of(reading.of_file(asked, path, VOCABULARY), 0)
    assert set(batch) == {f"decoder_{n}" for n in ("inputs", "targets", "segments", "weights")}
    ids = batch["decoder_targets"][batch["decoder_segments"] > 0]
    assert VOCABULARY.decode(ids) == "abc" * 20
    assert ids[-1] == EOS
    assert (ids == EOS).sum() == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no line"),
        ("\n\n", "has no line"),
        ('{"text": "a"}\n{"other": 1}\n', r"rows that cannot be used \(1 of 2\): line 2 has no"),
        ('{"text": 3}\n', "has no text in the field 'text'"),
        ('{"text": "a", "language": 7}\n', "has no text in the field 'language'"),
        ("[1]\n", "is no JSON object"),
        (None, "cannot be read"),
    ],
)
def test_bad_files(content, said, plan, tmp_path):
    path = tmp_path / "in.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=said):
        reading.of_file(plan(), path, VOCABULARY)
