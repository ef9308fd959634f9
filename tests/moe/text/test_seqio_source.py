"""seqio itself: the same ids, shifting, packing and noise statistics, and Tasks that are prepared.

The whole file needs the extra [text], TensorFlow included.
"""

import functools
import itertools
import json

import numpy as np
import pytest

seqio = pytest.importorskip("seqio", reason="needs seqio and TensorFlow, extra [text]")

import tensorflow as tf  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from moe import prepare  # noqa: E402
from moe.data import make_source, make_vocabulary  # noqa: E402
from moe.data.denoisers.span_corruption import SpanCorruption  # noqa: E402
from moe.data.sources.packing import fill_batch, pack_starts  # noqa: E402
from moe.text import seqio_source as tasks  # noqa: E402
from moe.text.pydoc_topics import Pydoc  # noqa: E402
from trainlib.errors import ConfigError, DataError  # noqa: E402

T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A SentencePiece model of 400 pieces, trained on the embedded text."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    text = "".join(doc.text["targets"] for doc in Pydoc(True).documents(0, 1))
    (folder / "corpus.txt").write_text(text)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "m"),
        vocab_size=400,
        minloglevel=2,
        **T5_IDS,
    )
    return f"sentencepiece:{folder}/m.model"


def topics():
    return [doc.text["targets"] for doc in Pydoc(False).documents(0, 1)]


def test_bytes_have_seqios_ids(data_config):
    ours = make_vocabulary(data_config())
    theirs = tasks.seqio_vocabulary(ours)
    assert ours.size == theirs.vocab_size == 359
    for text in [*topics()[:5], "ä文\x00 </s> <extra_id_0>"]:
        ids = theirs.encode(text)
        assert ours.encode(text).tolist() == list(ids)
        assert theirs.encode_tf(text).numpy().tolist() == list(ids)
        assert ours.decode(np.asarray(ids)) == theirs.decode(ids) == text


def test_pieces_have_seqios_ids(data_config, pieces):
    ours = make_vocabulary(data_config(vocabulary=pieces))
    theirs = tasks.seqio_vocabulary(ours)
    assert ours.size == theirs.vocab_size == 500
    for text in topics()[:8]:
        ids = theirs.encode(text)
        # Its TensorFlow tokeniser breaks ties between equal pieces otherwise than its Python one.
        assert ours.encode(text).tolist() == list(ids)
        assert ours.decode(np.asarray(ids)) == theirs.decode(ids)


@pytest.mark.parametrize("pack", [True, False])
def test_rows_equal_seqios_feature_converter(pack):
    """Shifting, segments, positions, weights and which example goes in which row."""
    rng = np.random.default_rng(0)
    pairs = [
        tuple(rng.integers(3, 250, rng.integers(1, limit)).astype(np.int32) for limit in (20, 12))
        for _ in range(32)  # seqio packs 32 examples (the row length) at a time, ends a row there
    ]

    def examples():
        for inputs, targets in pairs:
            yield {"inputs": np.append(inputs, 1), "targets": np.append(targets, 1)}

    signature = dict.fromkeys(("inputs", "targets"), tf.TensorSpec((None,), tf.int32))
    dataset = tf.data.Dataset.from_generator(examples, output_signature=signature)
    converter = seqio.EncDecFeatureConverter(pack=pack)
    theirs = list(converter(dataset, {"inputs": 32, "targets": 20}).as_numpy_iterator())
    if pack:
        sizes = np.asarray([[len(side) + 1 for side in pair] for pair in pairs])
        starts = pack_starts(sizes[:, 0], sizes[:, 1], 32, 20)
    else:
        starts = np.arange(len(pairs) + 1)
    rows = [pairs[a:b] for a, b in itertools.pairwise(starts.tolist())]
    ours = fill_batch(rows, 32, 20)
    names = {
        "encoder_inputs": "encoder_input_tokens",
        "encoder_segments": "encoder_segment_ids",
        "encoder_positions": "encoder_positions",
        "decoder_inputs": "decoder_input_tokens",
        "decoder_targets": "decoder_target_tokens",
        "decoder_segments": "decoder_segment_ids",
        "decoder_positions": "decoder_positions",
        "decoder_weights": "decoder_loss_weights",
    }
    assert len(theirs) == len(rows)
    for our_name, name in names.items():
        if not pack and name not in theirs[0]:
            continue  # without packing seqio gives no segments
        expected = np.stack([row[name] for row in theirs])
        # Without packing seqio shifts the EOS into the padding, where nothing is learned.
        seen = ours["decoder_weights"] > 0 if our_name == "decoder_inputs" else slice(None)
        np.testing.assert_array_equal(ours[our_name][seen], expected[seen], err_msg=name)


def test_embedded_text_is_the_same_as_a_task(data_config):
    config = data_config()
    vocabulary = make_vocabulary(config)
    readers = {"train": Pydoc(False), "holdout": Pydoc(True)}
    task = tasks.make_task(config, "pydoc", vocabulary, readers)
    for split in readers:
        dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False))
        ids = np.concatenate([example["targets"] for example in dataset.as_numpy_iterator()])
        source = make_source(config, split)
        np.testing.assert_array_equal(source.cache.read(0, source.cache.tokens), ids)


def register(name, examples, features=("targets",), vocabulary=None, preprocessors=None):
    """Registers a Task over text in memory."""

    def dataset(split, shuffle_files):
        del shuffle_files
        return tf.data.Dataset.from_tensor_slices(examples[split])

    vocabulary = vocabulary or seqio.ByteVocabulary(extra_ids=100)
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=tuple(examples)),
        preprocessors=preprocessors
        or [
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=dict.fromkeys(features, seqio.Feature(vocabulary)),
    )


PAIRS = {
    "train": {"inputs": ["2+2", "one plus two"], "targets": ["4", "three"]},
    "validation": {"inputs": ["1+1"], "targets": ["2"]},
}
TEXT = {"train": {"targets": ["some text", "more text"]}, "validation": {"targets": ["held out"]}}


def prepared(data_config, source, **settings):
    config = data_config(source=source, **settings)
    prepare.run(ConfigDict({"data": config}), workers=0)
    return config


def read(config, split):
    source = make_source(config, split)
    rows = source.read(np.arange(len(source)), None, 0)
    return sorted(
        tuple(source.vocabulary.decode(side) for side in pair) for row in rows for pair in row
    )


def test_task_of_pairs(data_config):
    register("pairs", PAIRS, ("inputs", "targets"))
    config = prepared(data_config, "seqio:pairs")
    assert read(config, "train") == [("2+2", "4"), ("one plus two", "three")]
    assert read(config, "holdout") == [("1+1", "2")]


def test_task_that_appends_the_end_itself(data_config):
    """Its EOS is left to the pipeline, which appends one."""
    steps = [seqio.preprocessors.tokenize_and_append_eos, seqio.CacheDatasetPlaceholder()]
    register("ends", PAIRS, ("inputs", "targets"), preprocessors=steps)
    config = prepared(data_config, "seqio:ends")
    source = make_source(config, "holdout")
    assert fill_batch(source.read(np.asarray([0]), None, 0), 8, 4)["decoder_targets"].tolist() == [
        [ord("2") + 3, 1, 0, 0]
    ]


def test_task_without_a_place_for_the_cache(data_config):
    register("plain", PAIRS, ("inputs", "targets"), preprocessors=[seqio.preprocessors.tokenize])
    assert read(prepared(data_config, "seqio:plain"), "holdout") == [("1+1", "2")]


def test_text_task_is_corrupted_by_the_pipeline(data_config):
    register("running", TEXT)
    config = prepared(data_config, "seqio:running")
    source = make_source(config, "train")
    assert source.cache.read(0, 99).tolist() == [b + 3 for b in b"some textmore text"]
    assert isinstance(source.denoiser, SpanCorruption)


def test_mixture_of_tasks(data_config):
    """Prepared once; training then needs the noted rates only."""
    register("pairs", PAIRS, ("inputs", "targets"))
    register("ends", PAIRS, ("inputs", "targets"))
    seqio.MixtureRegistry.remove("both")
    seqio.MixtureRegistry.add("both", [("pairs", 3), ("ends", 1)])
    config = prepared(data_config, "seqio:both")
    source = make_source(config, "train")
    names = [part.name for part in source.sources]
    assert dict(zip(names, source.rates, strict=True)) == {"seqio:pairs": 0.75, "seqio:ends": 0.25}


def test_definitions_from_a_file(data_config, tmp_path):
    file = tmp_path / "tasks.py"
    file.write_text(
        "import seqio, tensorflow as tf\n"
        "seqio.TaskRegistry.add('from_file', source=seqio.FunctionDataSource(\n"
        "    lambda split, shuffle_files: tf.data.Dataset.from_tensors({'targets': 'hello'}),\n"
        "    splits=('train', 'validation')), preprocessors=[seqio.preprocessors.tokenize],\n"
        "    output_features={'targets': seqio.Feature(seqio.ByteVocabulary(100))})\n"
    )
    config = data_config(source="seqio:from_file")
    prepare.run(ConfigDict({"data": config}), workers=0, tasks=file)
    assert make_source(config, "train").cache.tokens == 5


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_any_tfds_set(data_config, tmp_path, split):
    """A text set in the TFDS format, written here, read through TfdsDataSource."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"body": tfds.features.Text()})
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mini",
        version="1.0.0",
        data_dir=str(tmp_path / "tfds"),
        features=features,
        split_datasets={
            "train": tf.data.Dataset.from_tensor_slices({"body": ["first", "second"]}),
            "validation": tf.data.Dataset.from_tensor_slices({"body": ["third"]}),
        },
    )
    settings = {"dir": str(tmp_path / "tfds"), "text_feature": "body"}
    config = prepared(data_config, "tfds:mini:1.0.0", **settings)
    ids = make_source(config, split).cache.read(0, 99)
    text = make_vocabulary(config).decode(ids)
    assert sorted(text) == sorted("firstsecond" if split == "train" else "third")


@pytest.mark.parametrize("source", ["c4", "tfds:not_there:1.0.0"])
def test_absent_tfds_sets(data_config, tmp_path, source):
    config = data_config(source=source, dir=str(tmp_path))
    with pytest.raises(DataError, match=rf"its data was not found in {tmp_path}"):
        prepare.run(ConfigDict({"data": config}), workers=0)


def test_tfds_set_without_its_version(data_config):
    with pytest.raises(ConfigError, match="needs the version"):
        prepare.run(ConfigDict({"data": data_config(source="tfds:mini")}), workers=0)


BROKEN = {
    "no_targets": ({"features": ("inputs",)}, r"features inputs; training needs 'targets'"),
    "other_vocabulary": ({"vocabulary": seqio.ByteVocabulary(extra_ids=10)}, "vocabulary of"),
    "not_tokenised": (
        {"preprocessors": [seqio.CacheDatasetPlaceholder()]},
        "where a list of ids is needed",
    ),
    "dropped": (
        {
            "preprocessors": [
                functools.partial(seqio.preprocessors.rekey, key_map={"x": "targets"}),
                seqio.CacheDatasetPlaceholder(),
            ]
        },
        "has x and no 'targets'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tasks_that_cannot_serve(data_config, name):
    settings, message = BROKEN[name]
    register(name, {"train": {"targets": ["t"], "inputs": ["i"]}, "validation": {}}, **settings)
    with pytest.raises(DataError, match=message):
        prepare.run(ConfigDict({"data": data_config(source=f"seqio:{name}")}), workers=0)


def test_ids_outside_the_vocabulary(data_config):
    def wrong(dataset):
        return dataset.map(lambda example: {"targets": tf.constant([5, 777])})

    register("wrong", TEXT, preprocessors=[wrong, seqio.CacheDatasetPlaceholder()])
    message = r"seqio:wrong, train shard 0 of 1 example 0: 'targets' has the id 777"
    with pytest.raises(DataError, match=message):
        prepare.run(ConfigDict({"data": data_config(source="seqio:wrong")}), workers=0)


def test_unknown_task_and_split(data_config):
    register("pairs", PAIRS, ("inputs", "targets"))
    with pytest.raises(DataError, match="Did you mean 'pairs'"):
        prepare.run(ConfigDict({"data": data_config(source="seqio:pair")}), workers=0)
    config = data_config(source="seqio:pairs", eval_split="test")
    with pytest.raises(DataError, match="has no split 'test', only train, validation"):
        prepare.run(ConfigDict({"data": config}), workers=0)


def test_manifest_is_plain_json(data_config):
    register("pairs", PAIRS, ("inputs", "targets"))
    config = prepared(data_config, "seqio:pairs")
    directory = make_source(config, "train").cache.directory
    manifest = json.loads((directory / "manifest.json").read_text())["content"]
    assert manifest["source"] == "seqio:pairs"
    assert manifest["features"] == ["inputs", "targets"]
