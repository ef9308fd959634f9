"""Batches of text: contents, order over hosts, workers and restarts, bad records, evaluation."""

import re

import numpy as np
import pytest

from moe.data import eval_batches, make_source, train_batches
from moe.data.cache import read as cache_module
from trainlib.errors import ConfigError, DataError

KEYS = {
    *("encoder_inputs", "encoder_segments", "encoder_positions", "index"),
    *("decoder_inputs", "decoder_targets", "decoder_segments", "decoder_positions"),
    "decoder_weights",
}


def text_folder(tmp_path, texts):
    folder = tmp_path / "texts"
    folder.mkdir()
    for n, text in enumerate(texts):
        (folder / f"{n:03d}.txt").write_text(text)
    return {"source": f"text:{folder}", "holdout": 0.0}


def take(batches, count):
    with batches:
        return [next(batches) for _ in range(count)]


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def test_a_batch_of_pydoc_is_full(data_config):
    """Every row is one window that fills 512 and 114 exactly, as the published objective."""
    config = data_config()
    source = make_source(config, "train")
    batch = take(train_batches(source, config, 6, 0, 0, 0, 1), 1)[0]
    assert set(batch) == KEYS
    for key, array in batch.items():
        if key == "index":
            assert (array.shape, array.dtype) == ((6,), np.int64)
            continue
        assert array.shape == (6, 512 if key.startswith("encoder") else 114), key
        assert array.dtype == (np.float32 if key == "decoder_weights" else np.int32), key
    assert (batch["encoder_inputs"][:, :-1] > 1).all()
    assert (batch["decoder_targets"][:, :-1] > 1).all()
    assert (batch["encoder_inputs"][:, -1] == 1).all()
    assert (batch["decoder_targets"][:, -1] == 1).all()
    assert (batch["encoder_segments"] == 1).all()
    assert (batch["decoder_weights"] == 1).all()
    np.testing.assert_array_equal(batch["encoder_positions"], np.tile(np.arange(512), (6, 1)))
    # 28 sentinels from the top, 358 to 331, in order in both.
    for row in range(6):
        for key in ("encoder_inputs", "decoder_targets"):
            ids = batch[key][row]
            assert ids[ids >= 259].tolist() == list(range(358, 330, -1))
    np.testing.assert_array_equal(batch["decoder_inputs"][:, 1:], batch["decoder_targets"][:, :-1])
    assert (batch["decoder_inputs"][:, 0] == 0).all()


@pytest.mark.parametrize("settings", [{}, {"merge_documents": False}])
def test_order_does_not_depend_on_hosts_or_restarts(data_config, settings):
    config = data_config(**settings)
    source = make_source(config, "holdout")
    whole = take(train_batches(source, config, 8, 3, 0, 0, 1), 12)
    for hosts in (2, 4):
        parts = [take(train_batches(source, config, 8, 3, 0, h, hosts), 12) for h in range(hosts)]
        for number, batch in enumerate(whole):
            joined = {k: np.concatenate([p[number][k] for p in parts]) for k in KEYS}
            assert_equal(joined, batch)
    resumed = take(train_batches(source, config, 8, 3, 5, 0, 1), 7)
    for left, right in zip(resumed, whole[5:], strict=True):
        assert_equal(left, right)
    other = take(train_batches(source, config, 8, 4, 0, 0, 1), 1)[0]
    assert (other["encoder_inputs"] != whole[0]["encoder_inputs"]).any()


@pytest.mark.thorough
def test_order_does_not_depend_on_workers(data_config):
    parts = (("pydoc", 0.7), ("pydoc", 0.3))
    here, there = (data_config(source="mixture", parts=parts, workers=w) for w in (0, 2))
    source = make_source(here, "holdout")
    expected = take(train_batches(source, here, 80, 0, 2, 0, 1), 2)
    got = take(train_batches(source, there, 80, 0, 2, 0, 1), 2)
    for left, right in zip(got, expected, strict=True):
        assert_equal(left, right)


def test_an_epoch_reads_each_record_once(data_config):
    config = data_config()
    source = make_source(config, "holdout")
    batches = take(train_batches(source, config, len(source), 0, 0, 0, 1), 3)
    for batch in batches:
        assert sorted(batch["index"].tolist()) == list(range(len(source)))
    assert (batches[0]["index"] != batches[1]["index"]).any()


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_reads_each_record_once_and_pads(data_config, hosts):
    config = data_config()
    source = make_source(config, "holdout")
    size = 16
    assert len(source) % size
    parts = [list(eval_batches(source, config, size, h, hosts)) for h in range(hosts)]
    assert len({len(part) for part in parts}) == 1
    index = np.stack([np.concatenate([b["index"] for b in part]) for part in parts])
    padded = sorted(index.ravel().tolist())
    missing = -len(source) % size
    assert padded == [-1] * missing + list(range(len(source)))
    for part in parts:
        for batch in part:
            padding = batch["index"] < 0
            assert not batch["decoder_weights"][padding].any()
            assert not batch["encoder_segments"][padding].any()
            assert batch["decoder_weights"][~padding].any(1).all()


def test_evaluation_is_the_same_every_time(data_config):
    config = data_config()
    source = make_source(config, "holdout")
    first, second = (list(eval_batches(source, config, 32, 0, 1)) for _ in range(2))
    for left, right in zip(first, second, strict=True):
        assert_equal(left, right)


def broken_source(data_config, tmp_path, monkeypatch, **settings):
    """60,000 tokens in 30 records on disk, of which one is damaged."""
    monkeypatch.setattr(cache_module, "_IN_MEMORY_TOKENS", 0)
    words = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnop"), 60_000))
    config = data_config(**text_folder(tmp_path, [words]), **settings)
    source = make_source(config, "train")
    file = source.cache.directory / "00000-of-00001.tokens"
    content = bytearray(file.read_bytes())
    content[20_000] ^= 255  # not at a multiple of 64 KB, where the format keeps its own headers
    file.write_bytes(content)
    return make_source(config, "train"), config


def test_bad_records_are_named_and_left_out(data_config, tmp_path, monkeypatch):
    source, config = broken_source(data_config, tmp_path, monkeypatch, max_bad_fraction=0.3)
    with eval_batches(source, config, 8, 0, 1) as batches:
        read = list(batches)
        bad = batches.bad
    ((where, why),) = bad
    assert "cannot be read" in why
    # The rows that are lost are those that the named tokens are in.
    first, last = (int(n) for n in re.search(r"tokens (\d+)\.\.(\d+)", where).groups())
    lost = {int(i) for b in read for i in b["index"][b["decoder_weights"].sum(1) == 0] if i >= 0}
    assert lost == set(range(first // source.window, last // source.window + 1))


def test_a_damaged_record_is_one_whatever_epochs_meet_it(data_config, tmp_path, monkeypatch):
    """Rows begin elsewhere in every epoch; the place that is named does not."""
    source, config = broken_source(data_config, tmp_path, monkeypatch, max_bad_fraction=0.3)
    with eval_batches(source, config, 8, 0, 1) as batches:
        assert list(batches)
        known = batches.bad
    with train_batches(source, config, len(source), 1, 0, 0, 1) as batches:
        lost = [(batch["decoder_weights"].sum(1) == 0).sum() for batch in take(batches, 4)]
        assert batches.bad == known
    assert min(lost) > 1


def test_too_many_bad_records_stop_the_run(data_config, tmp_path, monkeypatch):
    source, config = broken_source(data_config, tmp_path, monkeypatch, max_bad_fraction=0.0)
    with pytest.raises(DataError, match="cannot be read"):
        list(eval_batches(source, config, 8, 0, 1))


def test_ids_outside_the_vocabulary_are_bad_records(data_config):
    config = data_config(max_bad_fraction=0.0)
    source = make_source(config, "holdout")
    monkey = source.cache.read
    source.cache.read = lambda start, stop: monkey(start, stop) + 300
    with pytest.raises(DataError, match=r"has the id \d+, outside the vocabulary of 359"):
        list(eval_batches(source, config, 8, 0, 1))


def test_impossible_batches(data_config):
    config = data_config()
    source = make_source(config, "holdout")
    with pytest.raises(ConfigError, match="does not divide over 3 hosts"):
        train_batches(source, config, 8, 0, 0, 0, 3)
    with pytest.raises(ConfigError, match="seed=-1"):
        train_batches(source, config, 8, -1, 0, 0, 1)
