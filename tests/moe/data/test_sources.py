"""Sources: windows of running text, packed examples, mixtures, entropies, and `data.source`."""

import itertools
import json
import pickle
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from ml_collections import ConfigDict

from moe import prepare
from moe.data import cache_paths, catalog, evaluates, make_source, make_vocabulary, unigram_entropy
from moe.data.cache import read as cache_module
from moe.data.cache_paths import cache_directory
from moe.data.mixtures import MIXTURES
from moe.data.sources.packing import fill_batch
from moe.text.pydoc_topics import Pydoc
from trainlib.errors import ConfigError, DataError

SMALL = {"encoder_length": 32, "decoder_length": 32, "mean_span": 2.0}


def text_folder(path, texts):
    path.mkdir(exist_ok=True)
    for n, text in enumerate(texts):
        (path / f"{n:03d}.txt").write_text(text)
    return f"text:{path}"


def jsonl(path, pairs):
    path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs))
    return {"source": f"jsonl:{path}", "text_feature": "a", "inputs_feature": "q", "holdout": 0.0}


def original(pair, first_sentinel=259):
    """The text that was corrupted, from input and target."""
    spans, current, text = {}, [], []
    for t in pair[1].tolist():
        if t >= first_sentinel:
            spans[t] = current = []
        else:
            current.append(t)
    for t in pair[0].tolist():
        text += spans[t] if t >= first_sentinel else [t]
    return text


@pytest.fixture
def stream(data_config, tmp_path):
    """A source over 1,000 ids that count up, and the ids."""
    text = "".join(chr(32 + n % 90) for n in range(1000))
    source = make_source(
        data_config(source=text_folder(tmp_path / "d", [text]), holdout=0.0, **SMALL), "train"
    )
    return source, source.vocabulary.encode(text).tolist()


@pytest.mark.parametrize("in_memory", [True, False])
def test_language_models_read_documents_each_with_its_end(
    data_config, tmp_path, monkeypatch, in_memory
):
    """Rows are cut from one stream, with no end of sequence but those of documents."""
    if not in_memory:
        monkeypatch.setattr(cache_module, "_IN_MEMORY_TOKENS", 0)
    monkeypatch.setattr(catalog, "_SHARD_BYTES", 90)
    texts = [chr(97 + n) * size for n, size in enumerate((40, 1, 7, 16, 30, 2))]
    config = data_config(
        source=text_folder(tmp_path / "d", texts),
        holdout=0.0,
        objective="language_model",
        decoder_length=9,
    )
    vocabulary = make_vocabulary(config)
    reader = catalog.make_reader(config, config.source, "train", vocabulary)
    directory = catalog.cache_directory(config, config.source, "train", vocabulary)
    catalog.build(
        directory, reader, vocabulary, shards=2, workers=0, max_bad_fraction=0.0, report=str
    )
    source = pickle.loads(pickle.dumps(make_source(config, "train")))
    stream = [[*vocabulary.encode(text), 1] for text in (*texts[::2], *texts[1::2])]
    stream = list(itertools.chain(*stream))
    assert len(source) == -(-len(stream) // 9)
    rows = source.read(np.arange(len(source)), None, 0)
    assert [t for row in rows for t in row[0][1].tolist()] == stream
    assert source.target_counts().tolist() == np.bincount(stream, minlength=359).tolist()
    batch = fill_batch(rows[:2], 32, 9, source.ends)
    assert batch["decoder_targets"].ravel().tolist() == stream[:18]
    assert batch["decoder_inputs"][1].tolist() == [0, *stream[9:17]]
    assert not batch["encoder_segments"].any()
    # In training each epoch begins elsewhere and goes on at the beginning.
    records = np.arange(len(source))
    trained = [row[0][1] for row in source.read(records, np.full(len(source), 3), 5)]
    assert {len(row) for row in trained} == {9}
    joined = np.concatenate(trained).tolist()
    doubled = stream + stream
    assert any(doubled[s : s + len(stream)] == joined[: len(stream)] for s in range(len(stream)))


def test_evaluation_reads_every_token_once_in_order(stream):
    source, ids = stream
    rows = source.read(np.arange(len(source)), None, 0)
    assert list(itertools.chain(*(original(row[0]) for row in rows))) == ids


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_training_reads_every_token_in_each_epoch(stream, epoch):
    source, ids = stream
    records = np.arange(len(source))
    rows = source.read(records, np.full_like(records, epoch), 3)
    joined = list(itertools.chain(*(original(row[0]) for row in rows)))
    assert len(joined) == len(source) * source.window
    assert len(joined) - len(ids) < source.window
    # One turn of the circle, from wherever the epoch begins.
    turn = joined[: len(ids)]
    assert any(turn == ids[k:] + ids[:k] for k in range(len(ids)))


def test_noise_and_cuts_differ_by_epoch_and_seed_but_not_in_evaluation(stream):
    source, _ = stream
    three = np.arange(3)

    def targets(seed, epoch):
        epochs = None if epoch is None else np.full_like(three, epoch)
        return [row[0][1].tolist() for row in source.read(three, epochs, seed)]

    assert targets(0, 0) == targets(0, 0)
    assert targets(0, 0) != targets(0, 1)
    assert targets(0, 0) != targets(1, 0)
    assert targets(0, None) == targets(1, None)


def test_text_shorter_than_a_window(data_config, tmp_path):
    source = text_folder(tmp_path / "d", ["abc"])
    source = make_source(data_config(source=source, holdout=0.0), "train")
    assert len(source) == 1
    for epochs in (None, np.asarray([4])):
        pair = source.read(np.asarray([0]), epochs, 0)[0][0]
        assert sorted(original(pair)) == [100, 101, 102]


def test_one_token(data_config, tmp_path):
    source = text_folder(tmp_path / "d", ["a"])
    source = make_source(data_config(source=source, holdout=0.0), "train")
    inputs, targets = source.read(np.asarray([0]), np.asarray([0]), 0)[0][0]
    assert (inputs.tolist(), targets.tolist()) == ([100], [358])


@pytest.mark.parametrize("pack", [True, False])
def test_documents_apart_are_cut_corrupted_and_packed(data_config, tmp_path, pack):
    texts = ["x" * n + "y" for n in (0, 1, 5, 9, 20, 34, 35, 36, 70, 200)]
    settings = {**SMALL, "merge_documents": False, "pack": pack, "holdout": 0.0}
    config = data_config(source=text_folder(tmp_path / "d", texts), **settings)
    source = make_source(config, "train")
    rows = source.read(np.arange(len(source)), None, 0)
    pieces = Counter("".join(chr(t - 3) for t in original(pair)) for row in rows for pair in row)
    # 33 tokens, 5 hidden (4.95) in 2 spans: 33 - 5 + 2 + EOS = 31; 34 give 32, 35 give 33.
    window = 34
    expected = Counter(t[i : i + window] for t in texts for i in range(0, len(t), window))
    assert pieces == expected
    arrays = fill_batch(rows, 32, 32)
    assert arrays["encoder_inputs"].max() == 358
    full = (arrays["encoder_segments"] > 0).mean()
    assert full > (0.6 if pack else 0.3)
    assert (max(len(row) for row in rows) > 1) == pack


def test_pairs_are_packed_each_once(data_config, tmp_path):
    pairs = [(f"q{n}" * (n % 5 + 1), f"a{n}") for n in range(100)]
    config = data_config(**SMALL, **jsonl(tmp_path / "qa.jsonl", pairs))
    source = make_source(config, "train")
    vocabulary = source.vocabulary
    rows = source.read(np.arange(len(source)), None, 0)
    got = [tuple(map(vocabulary.decode, pair)) for row in rows for pair in row]
    assert sorted(got) == sorted(pairs)
    assert got != pairs  # neighbours in the file do not share rows
    for row in rows:
        for side in (0, 1):
            assert sum(len(pair[side]) + 1 for pair in row) <= 32


def test_pairs_too_long_for_a_row_are_trimmed(data_config, tmp_path):
    config = data_config(**SMALL, **jsonl(tmp_path / "qa.jsonl", [("q" * 100, "a" * 100)]))
    source = make_source(config, "train")
    arrays = fill_batch(source.read(np.asarray([0]), None, 0), 32, 32)
    assert arrays["encoder_inputs"][0].tolist() == [ord("q") + 3] * 31 + [1]
    assert arrays["decoder_targets"][0].tolist() == [ord("a") + 3] * 31 + [1]


def mixture(data_config, tmp_path, rates):
    parts = tuple(
        (text_folder(tmp_path / f"d{n}", [chr(97 + n) * (50 * n + 40)]), rate)
        for n, rate in enumerate(rates)
    )
    return make_source(data_config(source="mixture", parts=parts, holdout=0.0, **SMALL), "train")


class Rows(list):
    """A source that has as many records as anyone asks for."""

    def locate(self, positions, seed):
        return np.zeros_like(positions), positions


@pytest.mark.parametrize("rates", [(0.7, 0.3), (3.0, 1.0, 1.0), (1.0, 1e-9)])
def test_rates_are_exact_in_each_cycle(data_config, tmp_path, rates):
    source = mixture(data_config, tmp_path, rates)
    source.sources = [Rows() for _ in rates]
    source._starts = starts = [n << 40 for n in range(len(rates) + 1)]
    for cycle in (0, 3):
        positions = np.arange(cycle << 16, (cycle + 1) << 16)
        _, records = source.locate(positions, 0)
        owners = np.searchsorted(starts, records, side="right") - 1
        counts = np.bincount(owners, minlength=len(rates))
        wanted = np.asarray(rates) / sum(rates) * (1 << 16)
        assert np.abs(counts - wanted).max() <= 1
        assert counts.min() >= 1


def test_each_part_of_a_mixture_is_read_through_before_it_repeats(data_config, tmp_path):
    source = mixture(data_config, tmp_path, (0.5, 0.2, 0.3))
    # The end of one cycle and the beginning of the next.
    epochs, records = source.locate(np.arange((1 << 16) - 500, (1 << 16) + 500), 7)
    starts = np.cumsum([0, *map(len, source.sources)])
    for n, part in enumerate(source.sources):
        mine = (records >= starts[n]) & (records < starts[n + 1])
        assert (np.diff(epochs[mine]) >= 0).all()
        whole = range(epochs[mine].min() + 1, epochs[mine].max())
        assert len(whole) > 10
        for epoch in whole:
            here = records[mine & (epochs == epoch)] - starts[n]
            assert sorted(here.tolist()) == list(range(len(part)))


def test_any_order_of_asking_gives_the_same_place(data_config, tmp_path):
    source = mixture(data_config, tmp_path, (0.5, 0.5))
    positions = np.arange(65_000, 66_000)
    shuffled = np.random.default_rng(0).permutation(1000)
    for whole, part in zip(
        source.locate(positions, 1), source.locate(positions[shuffled], 1), strict=True
    ):
        np.testing.assert_array_equal(whole[shuffled], part)


def test_rows_of_a_mixture_are_those_of_its_parts(data_config, tmp_path):
    source = mixture(data_config, tmp_path, (0.6, 0.4))
    texts = [
        "".join(map(chr, np.asarray(original(row[0])) - 3))
        for row in source.read(np.arange(len(source)), None, 0)
    ]
    assert "".join(texts) == "a" * 40 + "b" * 90


def test_entropy_of_known_counts():
    assert unigram_entropy(np.asarray([0, 5, 5, 5, 5])) == pytest.approx(np.log(4), abs=1e-12)
    assert unigram_entropy(np.asarray([0, 0, 7])) == 0
    p = np.asarray([0.5, 0.25, 0.25])
    assert unigram_entropy(p * 8) == pytest.approx(1.5 * np.log(2), abs=1e-12)


def counted(rows, size):
    targets = np.concatenate([pair[1] for row in rows for pair in row])
    ends = sum(len(row) for row in rows)
    return np.bincount(np.append(targets, [1] * ends), minlength=size)


def test_target_counts_are_those_of_the_batches(data_config):
    """In expectation: over 60 epochs the entropies agree, and sentinels are counted exactly."""
    source = make_source(data_config(), "holdout")
    records = np.arange(len(source))
    seen = sum(counted(source.read(records, np.full_like(records, e), 0), 359) for e in range(60))
    expected = source.target_counts()
    expected = expected * seen.sum() / expected.sum()
    np.testing.assert_allclose(seen[331:], expected[331:], rtol=1e-12)
    assert seen[1] == pytest.approx(expected[1])
    assert unigram_entropy(seen) == pytest.approx(unigram_entropy(expected), abs=2e-3)


def test_target_counts_of_pairs_are_exact(data_config, tmp_path):
    pairs = [("question", f"answer {n}") for n in range(20)]
    source = make_source(data_config(**SMALL, **jsonl(tmp_path / "qa.jsonl", pairs)), "train")
    rows = source.read(np.arange(len(source)), None, 0)
    np.testing.assert_array_equal(source.target_counts(), counted(rows, 359))


def test_digest_tells_what_changes_the_meaning_of_a_position(data_config, tmp_path):
    folder = text_folder(tmp_path / "d", ["some text to read " * 30])
    settings = {"source": folder, "holdout": 0.0}
    same = make_source(data_config(**settings), "train").digest
    assert make_source(data_config(**settings), "train").digest == same
    for change in ({"encoder_length": 256}, {"mean_span": 4.0}, {"merge_documents": False}):
        assert make_source(data_config(**settings, **change), "train").digest != same


def text_of(source):
    return "".join(map(chr, source.cache.read(0, source.cache.tokens) - 3))


@pytest.mark.parametrize("change", [("more.txt", "three"), ("001.txt", "owt")])
def test_small_sources_that_changed_are_tokenised_again(data_config, tmp_path, capsys, change):
    """Another file, and other text of the same length; once, and with a line that says so."""
    config = data_config(source=text_folder(tmp_path / "d", ["one", "two"]), holdout=0.0)
    before = make_source(config, "train")
    assert text_of(before) == "onetwo"
    (tmp_path / "d" / change[0]).write_text(change[1])
    for _ in range(2):
        after = make_source(config, "train")
    assert text_of(after) == {"more.txt": "onetwothree", "001.txt": "oneowt"}[change[0]]
    assert capsys.readouterr().out.count("(train) has changed since it was tokenised") == 1
    assert after.digest != before.digest
    assert len(list((tmp_path / "cache").iterdir())) == 1
    # Who opened the old one reads no mixture of both.
    with pytest.raises(DataError, match="damaged"):
        pickle.loads(pickle.dumps(before)).cache.read(0, 1)


def test_large_sources_that_changed_ask_to_be_prepared(data_config, tmp_path, monkeypatch):
    config = data_config(source=text_folder(tmp_path / "d", ["one", "two"]), holdout=0.0)
    source = make_source(config, "train")
    (tmp_path / "d" / "001.txt").write_text("owt")
    monkeypatch.setattr(catalog, "_AT_FIRST_USE_BYTES", 3)
    with pytest.raises(DataError, match=r"Remove (.*) and prepare it again") as caught:
        make_source(config, "train")
    # The advice, carried out.
    shutil.rmtree(re.search(r"Remove (\S+) and", str(caught.value))[1])
    prepare.run(ConfigDict({"data": config}), splits=["train"], workers=0)
    assert text_of(make_source(config, "train")) == "oneowt"
    assert source.digest


def test_one_name_in_two_folders_is_two_sources(data_config, tmp_path, monkeypatch, capsys):
    """`jsonl:train.jsonl` from two directories, and one file by three names."""
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        (tmp_path / name / "train.jsonl").write_text(json.dumps({"text": name}) + "\n")
        found.append(make_source(data_config(source="jsonl:train.jsonl", holdout=0.0), "train"))
    assert [text_of(source) for source in found] == ["a", "b"]
    assert "changed" not in capsys.readouterr().out
    (tmp_path / "link").symlink_to(tmp_path / "b")
    for path in (f"{tmp_path}/b", f"{tmp_path}/link", "../b", "."):
        same = make_source(data_config(source=f"jsonl:{path}/train.jsonl", holdout=0.0), "train")
        assert same.cache.directory == found[1].cache.directory


def test_without_a_holdout_there_is_nothing_to_evaluate(data_config, tmp_path):
    config = data_config(source=text_folder(tmp_path / "d", ["one", "two"]), holdout=0.0)
    assert not evaluates(config)
    with pytest.raises(ConfigError, match=r"data\.holdout=0: nothing of .* is held out") as caught:
        make_source(config, "holdout")
    # The advice, carried out: on other text, nearly all of it.
    assert "--config.data.holdout=0.99" in str(caught.value)
    other = text_folder(tmp_path / "other", [f"text {n}" for n in range(300)])
    held = make_source(data_config(source=other, holdout=0.99), "holdout")
    assert held.cache.documents >= 280
    both = (("pydoc", 0.5), (config.source, 0.5))
    mixed = data_config(source="mixture", parts=both, holdout=0.0)
    assert evaluates(mixed)
    assert make_source(mixed, "holdout").name == "pydoc"


@pytest.mark.parametrize("size", [2, 1000, 64 << 10])
def test_a_small_file_of_ones_own_works(data_config, tmp_path, size):
    (tmp_path / "mine.txt").write_text(("some words of mine\n" * 4000)[:size])
    for holdout in (0.0, 0.01, 0.5):
        config = data_config(source=f"text:{tmp_path}/mine.txt", holdout=holdout, **SMALL)
        assert len(make_source(config, "train"))
        if holdout:
            assert len(make_source(config, "holdout"))


def test_thirty_lines_of_json_work(data_config, tmp_path):
    for n in range(5):
        rows = [(f"question {n} {i}", f"answer {i}") for i in range(30)]
        settings = jsonl(tmp_path / f"{n}.jsonl", rows) | {"holdout": 0.01}
        parts = [make_source(data_config(**settings), split) for split in ("train", "holdout")]
        assert [part.cache.documents for part in parts] == [29, 1]


def test_files_passed_over_and_unknown_tokens_are_said(data_config, tmp_path):
    folder = tmp_path / "d"
    text_folder(folder, ["plain words 日本語 日本 " * 10])
    (folder / "table.csv").touch()
    model = sentencepiece_model(tmp_path)
    settings = {"vocabulary": f"sentencepiece:{model}", "holdout": 0.0}
    source = make_source(data_config(source=f"text:{folder}", **settings), "train")
    assert source.notes[0].endswith("1 .csv, another suffix (such as table.csv)")
    ids = source.vocabulary.encode((folder / "000.txt").read_text())
    count = int((ids == 2).sum())
    assert count >= 20
    assert f"unknown: {count:,} of {len(ids):,} tokens" in source.notes[1]


def sentencepiece_model(path):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some plain words of text", "other words"] * 50),
        model_prefix=str(path / "m"),
        vocab_size=40,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return path / "m.model"


def test_what_decides_the_tokens_names_the_cache_and_nothing_else(data_config, monkeypatch):
    """No setting finds the tokens of another; lengths, noise and packing share one cache."""

    def place(split="train", **settings):
        config = data_config(**settings)
        return cache_directory(config, config.source, split, make_vocabulary(config))

    source = {"source": "jsonl:/data"}
    others = [place(), place("holdout"), place(extra_ids=50), place(**source)]
    others += [
        place(**source, **change)
        for change in (
            {"holdout": 0.5},
            {"text_feature": "a"},
            {"inputs_feature": "q"},
            {"extra_ids": 50},
        )
    ]
    others += [place("holdout", source="c4", eval_split=split) for split in ("validation", "test")]
    assert len(set(others)) == len(others)
    for same in (
        {"encoder_length": 8},
        {"noise_density": 0.5},
        {"pack": False},
        {"mean_span": 9.0},
    ):
        assert place(**source, **same) == place(**source)
    before = place()
    monkeypatch.setattr(Pydoc, "fingerprint", lambda self: "of another Python")
    assert place() != before
    monkeypatch.setattr(cache_paths, "FORMAT", 0)
    assert place(**source) != others[3]


def test_the_cache_serves_without_the_files(data_config, tmp_path):
    config = data_config(source=text_folder(tmp_path / "d", ["one", "two"]), holdout=0.0)
    digest = make_source(config, "train").digest
    for file in (tmp_path / "d").iterdir():
        file.unlink()
    assert make_source(config, "train").digest == digest


def test_large_sources_ask_to_be_prepared(data_config, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "_AT_FIRST_USE_BYTES", 10)
    config = data_config(source=text_folder(tmp_path / "d", ["much more text"]), holdout=0.0)
    with pytest.raises(DataError, match=r"has not been prepared.*python -m launch\.prepare"):
        make_source(config, "train")


def test_documents_left_out_at_first_use_are_counted_and_named(data_config, tmp_path, capsys):
    source = text_folder(tmp_path / "d", ["text " * 20, "", " \n"])
    for _ in range(2):  # the second run finds them tokenised
        make_source(data_config(source=source, holdout=0.0, **SMALL), "train")
    out = capsys.readouterr().out
    assert out.count("left out: 2 of 3 documents") == 1
    assert "001.txt offset 0: is empty" in out


def test_unprepared_seqio_sources_need_no_seqio_to_say_so(data_config):
    with pytest.raises(DataError, match=r"c4 \(train\) has not been prepared"):
        make_source(data_config(source="c4"), "train")


def test_unreadable_tokens_are_reported_by_row(data_config, monkeypatch, tmp_path):
    monkeypatch.setattr(cache_module, "_IN_MEMORY_TOKENS", 0)
    config = data_config(source=text_folder(tmp_path / "d", ["abcd" * 5000]), holdout=0.0)
    source = make_source(config, "train")
    file = source.cache.directory / "00000-of-00001.tokens"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    rows = pickle.loads(pickle.dumps(source)).read(np.arange(len(source)), None, 0)
    broken = [row for row in rows if not isinstance(row, list)]
    assert len(broken) > 1
    for damage in broken:
        assert damage.where.startswith(f"{file} record ")
        assert "cannot be read" in damage.why


def test_the_published_mixture():
    # Table 19 of the paper.
    parts = MIXTURES["st_moe_32b"]
    assert sum(part.rate for part in parts) == pytest.approx(1.0)
    # Epochs at 1.5T tokens, as the paper prints them.
    epochs = [1500 * part.rate / part.tokens_in_billions for part in parts]
    assert [round(e, 2) for e in epochs] == [1.39, 3.57, 25.0, 1.98, 0.12, 0.65, 0.05]


def test_the_published_mixture_names_what_is_missing(data_config):
    given = (("news", "jsonl:/n"), ("books", "text:/b"))
    with pytest.raises(DataError, match=r"webpages \(rate 0.34, 143B tokens\), wikipedia"):
        make_source(data_config(source="mixture:st_moe_32b", parts=given), "train")
    everything = tuple((part.name, "pydoc") for part in MIXTURES["st_moe_32b"])
    source = make_source(data_config(source="mixture:st_moe_32b", parts=everything), "train")
    np.testing.assert_allclose(source.rates, [0.17, 0.34, 0.05, 0.23, 0.02, 0.17, 0.02])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "pydocs"}, "Did you mean 'pydoc'"),
        ({"source": "pydoc:x"}, "takes nothing after a colon"),
        ({"source": "text"}, "takes a path or name after a colon"),
        ({"source": "mixture"}, "does not describe a mixture"),
        ({"source": "mixture", "parts": (("pydoc", "much"),)}, "does not describe a mixture"),
        ({"source": "mixture", "parts": ("pydoc", 1.0)}, "a list, each a pair"),
        (
            {"source": "mixture", "parts": (("pydoc", 0.0), ("pydoc", 1.0))},
            "entry 2 is 0.0.*a number above 0",
        ),
        ({"source": "mixture", "parts": (("mixture:x", 1.0),)}, "'mixture:x' is not known"),
        ({"source": "mixture:st_moe"}, "Did you mean 'st_moe_32b'"),
        ({"source": "mixture:st_moe_32b", "parts": (("new", "c4"),)}, "Did you mean 'news'"),
        ({"parts": (("pydoc", 1.0),)}, "is no mixture"),
        ({"holdout": 1.0}, "holdout=1.0"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction=1.5"),
        ({"encoder_length": 1}, "encoder_length=1"),
        ({"decoder_length": 1}, "decoder_length=1"),
        ({"workers": -2}, "workers=-2"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"noise_density": 1.0}, "noise_density=1.0"),
        ({"objective": "span_coruption"}, "Did you mean 'span_corruption'"),
        ({"objective": "language_model", "source": "sample:cb"}, "cb holds pairs of inputs"),
        ({"decoder_length": 64}, "Set --config.data.decoder_length=114"),
    ],
)
def test_impossible_settings(data_config, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_source(data_config(**settings), "train")


def test_impossible_split(data_config):
    with pytest.raises(ConfigError, match="Allowed: train, holdout"):
        make_source(data_config(), "test")


def test_no_such_folder(data_config, tmp_path):
    with pytest.raises(DataError, match="there is nothing to read"):
        make_source(data_config(source=f"text:{tmp_path}/nowhere"), "train")


def test_vocabulary_must_be_that_of_the_cache(data_config):
    from moe.data.sources.from_cache import from_cache

    source = make_source(data_config(), "holdout")
    other = make_vocabulary(data_config(extra_ids=50))
    with pytest.raises(DataError, match=r"another one\. Prepare the data again"):
        from_cache("pydoc", source.cache, other, data_config())
