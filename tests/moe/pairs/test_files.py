"""Files of pairs: rows of three formats, what is refused with its row, what is held out."""

from __future__ import annotations

import csv
import gzip
import json
import sys

import pytest

from moe.data import make_source
from moe.data.sources.mixture import Mixture
from moe.pairs import files
from moe.pairs.rows import rows_of
from moe.tasks.records import whole
from moe.tasks.task import TEST, TRAIN, VALIDATION
from moe.text.json_rows import Bad
from trainlib.errors import ConfigError, DataError

ROW = {"inputs": "Is it so?", "targets": "yes"}


def lines(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def questions(count: int, **more) -> list[dict]:
    return [{"inputs": f"question {n}", "targets": f"answer {n}", **more} for n in range(count)]


@pytest.fixture
def written(tmp_path, data_config):
    """`written(text, name, **settings)`: a `data` section whose training file holds the text."""

    def make(content, name="train.jsonl", **settings):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        values = {"source": "pairs:*", "train": str(path), "holdout": 0.0, "encoder_length": 64}
        return data_config(**values | {"decoder_length": 32} | settings)

    return make


def examples(config, split=TRAIN, name="pairs"):
    return whole(files.read(config, name, split, strays=True), f"pairs:{name}", split)


# ------------------------------------------------------------------------------------ rows
def test_a_row_becomes_an_example(written):
    rows = [
        {"inputs": "häß ☃ \n two", "targets": " yes ", "choices": ["no", "yes"]},
        {"inputs": "1 + 1?", "targets": 2},
        {"inputs": "half?", "targets": [0.5, "a half", "a half"], "task": None},
        {"inputs": "which?", "targets": 3, "choices": [1, 2, "3"]},
    ]
    content = "\ufeff" + lines(*rows).replace("\n", "\r\n") + "\r\n"
    found = examples(written(content))
    assert [(e.inputs, e.targets, e.label, e.choices) for e in found] == [
        ("häß ☃ \n two", ("yes",), 1, ("no", "yes")),
        ("1 + 1?", ("2",), -1, ()),
        ("half?", ("0.5", "a half"), -1, ()),
        ("which?", ("3",), 2, ("1", "2", "3")),
    ]
    assert [example.where.rpartition(" ")[2] for example in found] == ["1", "2", "3", "4"]


BAD = [
    ([1], "is no JSON object"),
    ({"input": "a", "targets": "b"}, "has no field 'inputs'. Did you mean 'input'?"),
    ({"inputs": " ", "targets": "b"}, "has an empty field 'inputs'"),
    ({"inputs": 5, "targets": "b"}, "has 5 in the field 'inputs', where text is needed"),
    ({"inputs": "a", "target": "b"}, "test split may lack it. Did you mean 'target'? Fields:"),
    ({"inputs": "a", "targets": ""}, "has no answer in the field 'targets'"),
    ({"inputs": "a", "targets": " "}, "an empty text in the field 'targets'"),
    ({"inputs": "a", "targets": []}, "an empty list in the field 'targets'"),
    ({"inputs": "a", "targets": [["b"]]}, "['b'] in the field 'targets', where text or a number"),
    ({"inputs": "a", "targets": {"b": 1}}, "{'b': 1} in the field 'targets'"),
    ({"inputs": "a", "targets": True}, 'write it as text, "true"'),
    ({"inputs": "a", "targets": float("nan")}, "has nan in the field 'targets'"),
    (ROW | {"choices": ["no", "maybe"]}, "the target 'yes', which is none of its choices"),
    (ROW | {"choices": "yes,no"}, "'yes,no' in the field 'choices', where a list of 2 to"),
    (ROW | {"choices": ["yes"]}, "where a list of 2 to 1,000 texts"),
    (ROW | {"choices": ["yes", "yes "]}, "the same choice twice"),
    (ROW | {"choices": ["yes", None]}, "has None in the field 'choices'"),
    (ROW | {"targets": ["yes", "no"], "choices": ["yes", "no"]}, "has 2 targets and choices"),
    (ROW | {"task": "../x"}, "'../x' in the field 'task', where a name is needed"),
    (ROW | {"task": 3}, "has 3 in the field 'task'"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_row_that_cannot_be_used_is_named(written, row, message):
    config = written(lines(ROW, row), max_bad_fraction=0.0)
    with pytest.raises(DataError) as error:
        examples(config)
    assert "train.jsonl line 2 " in str(error.value)
    assert message in str(error.value)
    with pytest.raises(DataError, match=r"train\.jsonl line 2"):  # training stops as well
        make_source(config, "train")


def test_a_few_bad_rows_of_many_are_left_out_of_training_and_said(written, capsys):
    config = written(lines(*questions(40), {"inputs": "x"}) + "{broken\n", max_bad_fraction=0.1)
    source = make_source(config, "train")
    assert source.cache.documents == 40
    said = capsys.readouterr().out
    assert "line 41" in said
    assert "line 42" in said


FILES = [
    ("", "train.jsonl", "begins with nothing"),
    ("\n\n", "train.jsonl", "begins with nothing"),
    ("[]", "train.json", "has no rows"),
    ("inputs;targets\na;b\n", "train.csv", "seem to be separated by ';'"),
    ("input,targets\na,b\n", "train.csv", "row 1 names no column 'inputs'. Did you mean 'input'"),
    ("inputs,inputs\na,b\n", "train.csv", "row 1 names the column 'inputs' twice"),
    ("inputs,targets\n", "train.csv", "has no rows"),
    ("inputs" + ",x" * 1200 + "\n", "train.csv", "has more than 1,000 columns"),
    (b"PAR1 and no more", "train.parquet", "is no whole Parquet file"),
    (b"\x1f\x8b\x08 and no more", "train.jsonl.gz", "is no whole gzip file"),
    (b"PK\x03\x04", "train.zip", "is a zip archive: unpack or convert it"),
    ("\ufeffinputs,targets\n".encode("utf-16"), "train.csv", "is text in UTF-16: convert it"),
    (gzip.compress(b"PAR1"), "train.parquet.gz", "a Parquet file in a gzip file: unpack it"),
]


@pytest.mark.parametrize(("content", "name", "message"), FILES, ids=[f[2] for f in FILES])
def test_a_file_without_rows_is_refused_with_its_key(written, content, name, message):
    with pytest.raises(DataError) as error:
        make_source(written(content, name), "train")
    assert message in str(error.value)
    assert name in str(error.value)


def test_what_is_no_file_is_refused(written, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.parquet").touch()
    cases = [
        (tmp_path / "shards", "is a folder. Give one file", "In it: a.parquet"),
        (tmp_path / "tarin.jsonl", "there is no such file", "Did you mean 'train.jsonl'"),
    ]
    written(lines(ROW))
    for path, *messages in cases:
        config = written(lines(ROW), validation=str(path))
        with pytest.raises(DataError) as error:
            make_source(config, "holdout")
        assert all(text in str(error.value) for text in ["data.validation=", *messages])
    (tmp_path / "link.jsonl").symlink_to("train.jsonl")
    assert len(examples(written(lines(ROW), train=str(tmp_path / "link.jsonl")))) == 1
    config = written(lines(ROW), train="")
    with pytest.raises(ConfigError, match=r"--config\.data\.train=FILE"):
        make_source(config, "train")


def test_files_that_nothing_would_read_are_refused(written):
    with pytest.raises(
        ConfigError, match=r"data\.train is a file of pairs, and data\.source=pydoc"
    ):
        make_source(written(lines(ROW), source="pydoc"), "train")


# --------------------------------------------------------------------------- CSV and Parquet
def test_csv_gives_the_rows_of_the_csv_module(tmp_path, monkeypatch):
    """Quotes, separators and line ends in cells, empty cells, CRLF, a mark of byte order; the
    reference is Python's reader. In small blocks, so that rows lie across their ends.
    """
    from moe.pairs import tables

    cells = [["a, b", "x"], ['say "so"\r\nor not', "007"], ["NA", ""], ["é☃", "null"]] * 40
    # A column that begins with numbers, and whose type would be guessed from them.
    cells = [[*row, str(n) if n < 80 else "text"] for n, row in enumerate(cells)]
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["inputs", "targets", "idx"], *cells])
    with path.open(newline="", encoding="utf-8-sig") as file:
        expected = [
            {k: v for k, v in row.items() if v and k != "idx"} | {"idx": None}
            for row in csv.DictReader(file)
        ]
    monkeypatch.setattr(tables, "BLOCK_BYTES", 256)
    found = list(rows_of(path, "data.train"))
    assert [row for _, row in found] == expected
    assert [where for where, _ in found] == [f"row {n}" for n in range(2, 162)]
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(rows_of(packed, "data.train")) == found
    tabs = tmp_path / "t.tsv"
    tabs.write_text("targets\tinputs\tidx\nyes\tso, so?\t3\n")
    row = {"inputs": "so, so?", "targets": "yes", "idx": None}
    assert list(rows_of(tabs, "data.train")) == [("row 2", row)]


def test_lists_in_csv_are_json(written):
    text = 'inputs,targets,choices\nq,"[""a"", ""b""]",\nr,yes,"[""no"", ""yes""]"\ns,[unk] it,\n'
    found = examples(written(text, "train.csv"))
    assert [e.targets for e in found] == [("a", "b"), ("yes",), ("[unk] it",)]
    assert found[1].choices == ("no", "yes")


def test_rows_of_csv_that_are_ragged_or_no_text_are_named(tmp_path, monkeypatch):
    from moe.pairs import tables

    path = tmp_path / "t.csv"
    good = b'"good\nline",yes\n' * 30
    path.write_bytes(b"inputs,targets\n" + good + b"a,b,\xff\n\xff,yes\n" + good + b"short\n")
    monkeypatch.setattr(tables, "BLOCK_BYTES", 128)
    bad = {where: str(row) for where, row in rows_of(path, "k") if isinstance(row, Bad)}
    assert list(bad) == ["row 32", "row 33", "row 64"]
    assert "has 3 cells where the first line names 2 columns (a,b,\\xff)" in bad["row 32"]
    assert "in the column 'inputs' that is not UTF-8 (0xff)" in bad["row 33"]
    path.write_bytes(b'inputs,targets\n"never closed,' + b"x" * 300)
    with pytest.raises(DataError, match="look for a quotation mark that is not closed"):
        list(rows_of(path, "k"))


def test_parquet_gives_what_was_written(tmp_path, written):
    import pyarrow
    from pyarrow import parquet

    rows = {
        "inputs": pyarrow.array(["a", "b", "a", "é☃"]).dictionary_encode(),
        "targets": pyarrow.array([1.5, float("nan"), None, 2.0]),
        "choices": pyarrow.array([["1.5", "2"], None, None, None]),
        "task": pyarrow.array([b"t", b"t", b"t", b"t"], pyarrow.binary()),
        "idx": pyarrow.array([1, 2, 3, 4], pyarrow.int64()),
    }
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table(rows), path, row_group_size=2)
    found = [row for _, row in rows_of(path, "k")]
    assert found[0] == {"inputs": "a", "targets": 1.5, "choices": ["1.5", "2"], "task": "t"} | {
        "idx": None
    }
    assert found[2] == {"inputs": "a", "task": "t", "idx": None}
    assert found[3]["inputs"] == "é☃"
    config = written(path.read_bytes(), "train.parquet")
    with pytest.raises(DataError) as error:
        examples(config, name="t")
    assert "row 2 has nan in the field 'targets'" in str(error.value)
    assert "row 3 has no answer in the field 'targets'" in str(error.value)
    parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match=r"has no column 'inputs'.*Columns: text"):
        list(rows_of(path, "k"))


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("inputs,targets\na,b\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pyarrow, which is not installed.*\[text\]"):
        list(rows_of(path, "data.train"))


# ---------------------------------------------------------------------------------- splits
def test_the_held_out_share_follows_the_content(written):
    rows = questions(400)
    config = written(lines(*rows), holdout=0.1)
    held = {e.inputs for e in examples(config, VALIDATION)}
    kept = {e.inputs for e in examples(config, TRAIN)}
    assert held | kept == {row["inputs"] for row in rows}
    assert not held & kept
    assert 20 <= len(held) <= 60  # 40 expected
    assert files.notes(config)[0].startswith(f"held out {len(held)} of 400 rows of data.train")
    # Another order, more rows and the same question with another answer move nothing.
    again = [{"inputs": row["inputs"], "targets": "other"} for row in rows]
    config = written(lines(*again, *questions(500)[::-1]), holdout=0.1)
    moved = {e.inputs for e in examples(config, VALIDATION)}
    assert held == moved & {row["inputs"] for row in rows}


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_two_inputs_are_one_on_each_side(written, share):
    config = written(lines(*questions(2), *questions(1, task="alone")), holdout=share)
    assert len(examples(config, VALIDATION)) == len(examples(config, TRAIN)) == 1
    assert [t.name for t in files.tasks_of(config, "pairs:*", VALIDATION)] == ["pairs"]
    assert [t.name for t in files.tasks_of(config, "pairs:*", TRAIN)] == ["pairs", "alone"]
    assert any("nothing of alone, which has one input" in note for note in files.notes(config))


def test_tasks_of_one_file_are_mixed_by_size(written):
    mixed = questions(60, task="large") + questions(20, task="small", choices=None)
    config = written(lines(*mixed), pack=False)
    source = make_source(config, "train")
    assert isinstance(source, Mixture)
    assert [part.name for part, _ in source.parts()] == ["pairs:large", "pairs:small"]
    assert [rate for _, rate in source.parts()] == pytest.approx([0.75, 0.25])
    config.source = "pairs:small"
    assert len(make_source(config, "train")) == 20
    config.source = "pairs:smal"
    with pytest.raises(ConfigError, match="Did you mean 'small'"):
        make_source(config, "train")


def test_a_test_file_may_lack_answers(written, tmp_path):
    (tmp_path / "test.jsonl").write_text(lines({"inputs": "a"}, {"inputs": "b", "targets": ""}))
    config = written(lines(ROW), test=str(tmp_path / "test.jsonl"))
    assert [e.known for e in examples(config, TEST)] == [False, False]


def test_leaks_repeats_and_fields_that_are_not_read_are_counted(written, tmp_path):
    rows = questions(10)
    other = [{**rows[3], "targets": "another"}, rows[4], ROW, {**rows[5], "task": "else"}]
    (tmp_path / "validation.jsonl").write_text(lines(*other))
    config = written(
        lines(*rows, rows[0], {**ROW, "inputs": "new", "choises": ["yes", "no"], "idx": 1}),
        validation=str(tmp_path / "validation.jsonl"),
    )
    notes = files.notes(config)
    assert notes[0].startswith("repeated 1 of 12 rows of data.train")
    assert "fields of data.train: choises (1), idx (1). Did you mean 'choices'?" in notes[1]
    assert notes[2].startswith("leak     2 of 4 rows of data.validation")
    assert len(notes) == 3


def test_an_edit_is_noticed(written, capsys):
    config = written(lines(*questions(5)))
    assert make_source(config, "train").cache.documents == 5
    config = written(lines(*questions(6)))
    assert make_source(config, "train").cache.documents == 6
    assert "tokenised again" in capsys.readouterr().out
