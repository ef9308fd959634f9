"""Documents from pydoc, folders of text and jsonl, and what is said of unusable ones."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from moe.data import readers
from moe.data.readers import Jsonl, Pydoc, TextFolder
from trainlib.errors import DataError


def everything(reader, shards=1):
    return [doc for shard in range(shards) for doc in reader.documents(shard, shards)]


def texts(reader, shards=1):
    return [doc.text["targets"] for doc in everything(reader, shards) if not doc.unusable]


def folder(path, **files):
    path.mkdir()
    for name, content in files.items():
        (path / f"{name}.txt").write_bytes(content)
    return str(path)


def test_pydoc_splits_share_no_paragraph():
    train, holdout = (texts(Pydoc(held)) for held in (False, True))
    paragraphs = [
        {" ".join(p.split()) for text in part for p in text.split("\n\n") if p.strip()}
        for part in (train, holdout)
    ]
    assert not paragraphs[0] & paragraphs[1]
    size = sum(map(len, train)), sum(map(len, holdout))
    assert sum(size) > 300_000  # 0.37 MB in Python 3.11
    assert 0.03 < size[1] / sum(size) < 0.2


def test_pydoc_is_one_text_whatever_the_shards():
    assert sorted(texts(Pydoc(False), 3)) == sorted(texts(Pydoc(False)))


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_every_byte_is_in_one_piece_and_one_split(tmp_path, monkeypatch, kind):
    """Pieces end with the line after 100 bytes here; splits and shards divide the pieces."""
    monkeypatch.setattr(readers, "_PIECE_BYTES", 100)
    lines = [f"line {n} {'x' * (n * 37 % 250)}" for n in range(200)]
    data = tmp_path / "data"
    data.mkdir()
    for name, part in (("a", lines[:150]), ("b", lines[150:])):
        if kind == "text":
            (data / f"{name}.txt").write_text("".join(f"{line}\n" for line in part))
        else:
            content = "".join(json.dumps({"text": line}) + "\n" for line in part)
            (data / f"{name}.jsonl").write_text(content)

    def read(holdout, shards):
        if kind == "text":
            return texts(TextFolder(str(data), 0.3, holdout), shards)
        return texts(Jsonl(str(data), "text", "", 0.3, holdout), shards)

    train, holdout = read(False, 1), read(True, 1)
    assert sorted("\n".join(train + holdout).split()) == sorted(" ".join(lines).split())
    assert 0.1 < len(holdout) / len(train + holdout) < 0.5
    for shards in (2, 7):
        assert sorted(read(False, shards)) == sorted(train)
        assert sorted(read(True, shards)) == sorted(holdout)


def test_unusable_texts_are_named(tmp_path):
    path = folder(
        tmp_path / "data",
        good=b"fine text\n", empty=b"", blank=b" \n\n\t", latin=b"caf\xe9 au lait", nul=b"a\x00b",
    )  # fmt: skip
    documents = {doc.where: doc for doc in everything(TextFolder(path, 0.0, False))}
    unusable = {
        where.split("/")[-1]: doc.unusable for where, doc in documents.items() if doc.unusable
    }
    assert unusable == {
        "empty.txt offset 0": "is empty",
        "blank.txt offset 0": "is empty",
        "latin.txt offset 0": "is not UTF-8 (byte 0xe9 at offset 3 of the file)",
    }
    # NUL is a character like any other.
    assert sorted(texts(TextFolder(path, 0.0, False))) == ["a\x00b", "fine text\n"]


def test_offset_of_a_bad_byte_counts_from_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_PIECE_BYTES", 64)
    path = folder(tmp_path / "data", a=b"0123456789\n" * 20 + b"ab\xff")
    bad = [doc for doc in everything(TextFolder(path, 0.0, False)) if doc.unusable]
    assert [doc.unusable for doc in bad] == ["is not UTF-8 (byte 0xff at offset 222 of the file)"]
    assert bad[0].where.endswith("a.txt offset 192")


def test_a_single_file_needs_no_folder(tmp_path):
    folder(tmp_path / "data", one=b"only this")
    assert texts(TextFolder(str(tmp_path / "data" / "one.txt"), 0.0, False)) == ["only this"]


LINES = {
    b'{"text": "good"}': "",
    b"{'text': 1}": "is not JSON",
    b'{"txt": "x"}': "has no text in the field 'text'",
    b'{"text": 7}': "has no text in the field 'text'",
    b'{"text": "  "}': "has no text in the field 'text'",
    b'["text"]': "has no text in the field 'text'",
    b'{"text": "caf\xe9"}': "is not UTF-8 (byte 0xe9",
    b"[" * 100_000: "is not JSON",
}


def test_unusable_lines_are_named(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(b"\n".join(LINES) + b"\n\n")
    documents = everything(Jsonl(str(file), "text", "", 0.0, False))
    offset = 0
    for document, (line, why) in zip(documents, LINES.items(), strict=True):
        assert document.where.endswith(f"data.jsonl offset {offset}")
        assert document.unusable.startswith(why)
        assert bool(document.unusable) == bool(why)
        offset += len(line) + 1


def test_empty_jsonl_is_named(tmp_path):
    (tmp_path / "data.jsonl").touch()
    reader = Jsonl(str(tmp_path), "text", "", 0.01, False)
    assert [doc.unusable for doc in everything(reader)] == ["is empty"]


def test_a_blank_piece_of_a_longer_file_is_named(tmp_path, monkeypatch):
    """The middle of a line that began before is no document of its own."""
    monkeypatch.setattr(readers, "_PIECE_BYTES", 10)
    path = folder(tmp_path / "data", a=b"a long line here\n" + b"\n" * 20 + b"end\n")
    named = {
        doc.where.split()[-1]: doc.unusable for doc in everything(TextFolder(path, 0.0, False))
    }
    assert named == {"0": "", "10": "is empty", "20": "is empty", "30": ""}


def test_pairs(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"question": "2+2", "answer": "4"}\n{"question": "", "answer": "4"}\n')
    reader = Jsonl(str(file), "answer", "question", 0.0, False)
    assert reader.features == ("inputs", "targets")
    pair, broken = everything(reader)
    assert pair.text == {"inputs": "2+2", "targets": "4"}
    assert broken.unusable == "has no text in the field 'question'"


def test_a_line_of_ten_megabytes_is_one_document(tmp_path):
    path = folder(tmp_path / "data", a=b"short\n" + b"word " * (2 << 20) + b"\nafter\n")
    assert sorted(map(len, texts(TextFolder(path, 0.0, False)))) == [6, 6 + (10 << 20) + 1]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_line_above_the_limit_is_refused_and_passed_over(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(readers, "_LARGEST_BYTES", 1000)
    monkeypatch.setattr(readers, "_PIECE_BYTES", 100)
    long, after = "x" * 5000, "y" * 90
    wrap = json.dumps if kind == "jsonl" else lambda value: value["text"]
    lines = [wrap({"text": line}) + "\n" for line in (long, after)]
    file = tmp_path / f"data.{'txt' if kind == 'text' else kind}"
    file.write_text("".join(lines))
    if kind == "text":
        documents = everything(TextFolder(str(file), 0.0, False))
    else:
        documents = everything(Jsonl(str(file), "text", "", 0.0, False))
    assert [bool(doc.unusable) for doc in documents] == [True, False]
    assert "has a line above" in documents[0].unusable
    assert documents[1].text["targets"].strip() == after


def test_fingerprint_follows_names_sizes_and_bytes(tmp_path):
    path = folder(tmp_path / "data", a=b"one", b=b"two")
    reader = TextFolder(path, 0.0, False)
    before = reader.fingerprint()
    os.utime(tmp_path / "data" / "b.txt", (0, 0))  # as a copy has other times
    assert reader.fingerprint() == before
    for content in (b"more", b"twO"):  # of another size, and of the same
        (tmp_path / "data" / "b.txt").write_bytes(content)
        assert reader.fingerprint() != before
    folder(tmp_path / "copy", a=b"one", b=b"two")
    assert TextFolder(str(tmp_path / "copy"), 0.0, False).fingerprint() == before
    assert TextFolder(str(tmp_path / "nowhere"), 0.0, False).fingerprint() is None


def test_fingerprint_of_much_text_samples_all_of_it(tmp_path, monkeypatch):
    """Of 100,000 bytes in three files 10 blocks of 100: a text that is shifted is noticed, and so
    are other bytes in any sampled place; no more is read.
    """
    for name, value in (("_WHOLE_BYTES", 1000), ("_SAMPLES", 10), ("_SAMPLE_BYTES", 100)):
        monkeypatch.setattr(readers, name, value)
    text = np.random.default_rng(0).integers(97, 123, 100_000, dtype=np.uint8)
    cuts = (text[:25_050], text[25_050:25_060], text[25_060:])
    path = folder(tmp_path / "data", **{n: c.tobytes() for n, c in zip("abc", cuts, strict=True)})
    reader = TextFolder(path, 0.0, False)
    before = reader.fingerprint()
    changed = []
    for place in range(0, len(text), 50):
        with (tmp_path / "data" / "c.txt").open("r+b") as file:
            if place < 25_060:
                continue
            file.seek(place - 25_060)
            file.write(bytes([text[place] ^ 1]))
            file.flush()
            if reader.fingerprint() != before:
                changed.append(place)
            file.seek(place - 25_060)
            file.write(bytes([text[place]]))
    assert changed == [p for start in range(30_000, 100_000, 10_000) for p in (start, start + 50)]
    shifted = np.roll(text, 1)[25_060:].tobytes()
    (tmp_path / "data" / "c.txt").write_bytes(shifted)
    assert reader.fingerprint() != before


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = folder(tmp_path / "data", a=b"one")

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"data cannot be read .*Permission denied: '.*a\.txt'"):
        TextFolder(path, 0.0, False).fingerprint()
