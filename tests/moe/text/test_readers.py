"""Documents from pydoc, folders of text and jsonl, and what is said of unusable ones."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from moe.text import file_reader, fingerprint, json_rows, jsonl
from moe.text import files as text_files
from moe.text.json_rows import open_rows
from moe.text.jsonl import Jsonl
from moe.text.pieces import Pieces
from moe.text.pydoc_topics import Pydoc
from moe.text.text_folder import TextFolder
from trainlib import paths
from trainlib.errors import ConfigError, DataError


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
    monkeypatch.setattr(file_reader, "PIECE_BYTES", 100)
    longest = 250 if kind == "jsonl" else 90  # text without line ends is cut before the next piece
    lines = [f"line {n} {'x' * (n * 37 % longest)}" for n in range(200)]
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
        good=b"fine text\n",
        empty=b"",
        blank=b" \n\n\t",
        latin=b"caf\xe9 au lait",
        nul=b"a\x00b",
    )
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
    monkeypatch.setattr(file_reader, "PIECE_BYTES", 64)
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
    b'["text"]': "is no JSON object",
    b'{"text": "\\ud83d"}': "holds half of a surrogate pair",
    b'{"text": "a", "text": "b"}': "names 'text' twice",
    b"{": "is not JSON that can be read: Expecting property name",
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
    monkeypatch.setattr(file_reader, "PIECE_BYTES", 10)
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


def test_a_line_of_ten_megabytes_is_cut_between_words(tmp_path):
    words = b"word " * (2 << 20)
    path = folder(tmp_path / "data", a=b"short\n" + words + b"\nafter\n")
    found = texts(TextFolder(path, 0.0, False))
    assert "".join(found).encode() == b"short\n" + words + b"\nafter\n"
    assert max(map(len, found)) < 2 * (64 << 10)
    assert {word for text in found for word in text.split()} == {"short", "word", "after"}


@pytest.mark.parametrize("letters", ["é", "日本語", "\r", "🙂"])
def test_text_without_line_ends_is_read_once_whatever_its_letters(tmp_path, letters):
    """Every piece reads its own bytes and those of the next, so that time grows with the size."""
    text = letters * (1_000_000 // len(letters.encode()))
    path = folder(tmp_path / "data", a=text.encode())
    reads = []

    class Counted(io.BytesIO):
        def read(self, size=-1):
            reads.append(size)
            return super().read(size)

    reader = TextFolder(path, 0.0, False)
    if text.strip():
        assert "".join(texts(reader)) == text
    file = Counted(text.encode())
    pieces = Pieces(file, 1 << 16)
    parts = [pieces.read(start)[1] for start in range(0, len(text.encode()), 1 << 16)]
    assert b"".join(parts) == text.encode()
    assert sum(reads) < 1.3 * len(text.encode())


def test_jsonl_without_line_ends_is_read_once(tmp_path, monkeypatch):
    """A line of many pieces is read by the one in which it begins; the others pass over it."""
    monkeypatch.setattr(file_reader, "PIECE_BYTES", 1 << 10)
    opened = []
    monkeypatch.setattr(jsonl, "open_rows", lambda path: opened.append(path) or open_rows(path))
    file = tmp_path / "data.jsonl"
    rows = [json.dumps({"text": letter * 300_000}) for letter in "ab"]
    file.write_text("\n".join(rows))
    found = texts(Jsonl(str(file), "text", "", 0.0, False))
    assert [text[0] for text in found] == ["a", "b"]
    assert len(opened) < 6
    for shards in (2, 7):
        assert sorted(texts(Jsonl(str(file), "text", "", 0.0, False), shards)) == sorted(found)


def test_a_line_above_the_limit_is_refused_and_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "LARGEST_BYTES", 1000)
    monkeypatch.setattr(file_reader, "PIECE_BYTES", 100)
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("x" * 5000, "y" * 90)))
    documents = everything(Jsonl(str(file), "text", "", 0.0, False))
    assert [bool(doc.unusable) for doc in documents] == [True, False]
    assert "has a line above" in documents[0].unusable
    assert documents[1].text["targets"] == "y" * 90


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


def test_fingerprint_of_much_text_sees_every_byte(tmp_path, monkeypatch):
    """40 edits of one byte in place, of the same size and with the same date: all are seen, the
    digest of what did not change is taken from the notes, and damaged notes cost a reading."""
    monkeypatch.setattr(fingerprint, "_ALWAYS_BYTES", 1000)
    text = np.random.default_rng(0).integers(97, 123, 100_000, dtype=np.uint8).tobytes()
    path = folder(tmp_path / "data", a=text[:60_000], b=text[60_000:])
    file = tmp_path / "data" / "b.txt"
    old = time.time_ns() - 10**10
    monkeypatch.setattr(fingerprint, "_SETTLED_S", -1.0)  # as if all had been written long ago
    reader = TextFolder(path, 0.0, False)
    reader.notes = tmp_path / "cache" / "notes.json"
    before = reader.fingerprint()
    os.utime(file, ns=(old, old))
    assert reader.fingerprint() == before
    seen = 0
    for place in range(0, 40_000, 1000):
        changed = bytearray(text[60_000:])
        changed[place] ^= 1
        with file.open("r+b") as opened:
            opened.write(changed)
        os.utime(file, ns=(old, old))
        seen += reader.fingerprint() != before
    assert seen == 40
    file.write_bytes(text[60_000:])
    assert reader.fingerprint() == before
    notes = reader.notes.read_bytes()
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, name: read.append(1) or digest(f, name))
    assert (reader.fingerprint(), len(read)) == (before, 0)
    reader.notes.write_bytes(notes.replace(b"a", b"b", 1))
    assert (reader.fingerprint(), len(read)) == (before, 2)


def test_what_changed_just_now_is_read_again(tmp_path, monkeypatch):
    """Two edits within one tick of the file system's clock look the same."""
    monkeypatch.setattr(fingerprint, "_ALWAYS_BYTES", 0)
    reader = TextFolder(folder(tmp_path / "data", a=b"one"), 0.0, False)
    reader.notes = tmp_path / "notes.json"
    reader.fingerprint()
    assert not reader.notes.exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = folder(tmp_path / "data", a=b"one")

    def refuse(*_):
        raise PermissionError(13, "Permission denied", f"{path}/a.txt")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    with pytest.raises(DataError, match=r"data cannot be read .*Permission denied: '.*a\.txt'"):
        TextFolder(path, 0.0, False).fingerprint()


# --------------------------------------------------------------------------- what lies in a folder
def found_in(path, kind="text", holdout=0.0):
    reader = (
        TextFolder(str(path), holdout, False)
        if kind == "text"
        else Jsonl(str(path), "text", "", holdout, False)
    )
    return sorted(texts(reader)), reader.passed_over


def test_suffixes_gzip_and_what_is_passed_over(tmp_path):
    top = tmp_path / "d"
    (top / "deep").mkdir(parents=True)
    (top / "A.TXT").write_text("upper")
    (top / "b.md").write_text("mark")
    (top / "deep" / "c.txt.gz").write_bytes(gzip.compress(b"packed"))
    (top / "E.MD.GZ").write_bytes(gzip.compress(b"both"))
    (top / "link.txt").symlink_to(top / "b.md")
    (top / "loop").symlink_to(top, target_is_directory=True)
    for name in (".hidden.txt", "._A.TXT"):
        (top / name).write_text("not this")
    (top / "__MACOSX").mkdir()
    (top / "__MACOSX" / "x.txt").write_text("nor this")
    for name in ("x.csv", "y.CSV", "README"):
        (top / name).write_text("other")
    (top / "z.txt").write_bytes(b"PK\x03\x04zip")
    (top / "w.txt").write_bytes("wide".encode("utf-16"))
    os.mkfifo(top / "pipe.txt")
    (top / "zero.txt").symlink_to("/dev/zero")
    read, lines = found_in(top)
    assert read == ["both", "mark", "mark", "packed", "upper"]
    for line in (
        "2 .csv, another suffix (such as x.csv)",
        "1 without a suffix, another suffix (such as README)",
        "1 .txt, a zip archive: unpack or convert it (such as z.txt)",
        "1 .txt, text in UTF-16: convert it to UTF-8 (such as w.txt)",
        "1 .txt, not a regular file but a named pipe (such as pipe.txt)",
        "1 .txt, not a regular file but a link to a device (such as zero.txt)",
        "2 .txt, hidden (such as ._A.TXT)",
        "1 folder, left by an archive of macOS (such as __MACOSX)",
        "1 folder, a link to a folder that is read already (such as loop)",
    ):
        assert line in lines
    assert len(lines) == 9


def test_a_folder_without_anything_to_read_says_what_is_there(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(
        DataError, match=r"only 1 \.csv, .*such as a\.csv\)\. Give a folder of \.txt"
    ):
        TextFolder(str(tmp_path), 0.0, False).fingerprint()
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(DataError, match=r"p\.txt is a named pipe"):
        TextFolder(str(tmp_path / "p.txt"), 0.0, False).fingerprint()
    with pytest.raises(DataError, match=r"is a device"):
        Jsonl("/dev/zero", "text", "", 0.0, False).fingerprint()


ROWS = [{"text": f'row {n}, "quoted" ] }} é', "n": n} for n in range(500)]
FORMS = {
    "lines.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "lines.json": "\n".join(map(json.dumps, ROWS)).encode(),
    "lines.jsonl.gz": gzip.compress("\n".join(map(json.dumps, ROWS)).encode()),
    "array.json": json.dumps(ROWS, ensure_ascii=False).encode(),
    "pretty.json": b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=3).encode() + b"\n \n",
    "array.jsonl": json.dumps(ROWS).encode(),
    "array.json.gz": gzip.compress(json.dumps(ROWS, indent=1).encode()),
    "mark.jsonl": b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, ROWS)).encode(),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("alone", [True, False])
def test_forms_of_json(tmp_path, monkeypatch, name, alone):
    monkeypatch.setattr(json_rows, "_CHUNK", 100)  # elements lie across the ends of what is read
    (tmp_path / name).write_bytes(FORMS[name])
    read, lines = found_in(tmp_path / name if alone else tmp_path, "jsonl")
    assert read == sorted(row["text"] for row in ROWS)
    assert not lines
    assert [row for _, row in json_rows.read_rows(tmp_path / name)] == ROWS


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'[{"text": "a"}, {"text": ', r"is no JSON .*\(after 1 elements\)"),
        (b'[{"text": "a"} {"text": "b"}]', "breaks off or lacks a comma"),
        (b'[{"text": "a"}', "breaks off or lacks a comma"),
        (b'[{"text": "a"}]\n{"text": "b"}', "goes on behind its end"),
        (b'[{"text": "a"},]', "is no JSON"),
        (b"[" * 100_000, "nests too deeply|is no JSON"),
        (b'[{"text": "\xff"}]', "not UTF-8"),
    ],
)
def test_an_array_that_breaks_off_is_refused(tmp_path, content, why):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=why):
        everything(Jsonl(str(tmp_path), "text", "", 0.0, False))


def test_elements_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[1, 23, "x", {"text": "good"}, {"text": "\\ud83d"}, []]')
    found = everything(Jsonl(str(tmp_path), "text", "", 0.0, False))
    assert [bool(document.unusable) for document in found] == [True, True, True, False, True, True]
    assert found[4].where.endswith("a.json element 5")
    assert "surrogate" in found[4].unusable


@pytest.mark.parametrize("cut", [5, -9])
def test_a_damaged_gzip_file_is_refused(tmp_path, cut):
    (tmp_path / "a.jsonl.gz").write_bytes(FORMS["lines.jsonl.gz"][:cut])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is no whole gzip file"):
        everything(Jsonl(str(tmp_path), "text", "", 0.0, False))


def test_large_gzip_files_are_divided_as_plain_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(file_reader, "PIECE_BYTES", 100)
    monkeypatch.setattr(text_files, "_PROBE_BYTES", 50)
    text = "".join(f"line {n}\n" for n in range(300))
    for name, content in (("p", text.encode()), ("g", gzip.compress(text.encode()))):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("a.txt" if name == "p" else "a.txt.gz")).write_bytes(content)
    assert found_in(tmp_path / "p")[0] == found_in(tmp_path / "g")[0]
    assert TextFolder(str(tmp_path / "g"), 0.0, False).size_bytes > 0


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = folder(
        tmp_path / "data", a=b"\xef\xbb\xbfhello", b=b"\xef\xbb\xbf", c=b"\xef\xbb\xbfx\xff"
    )
    found = {
        d.where.split("/")[-1]: d.text or d.unusable
        for d in everything(TextFolder(path, 0.0, False))
    }
    assert found == {
        "a.txt offset 0": {"targets": "hello"},
        "b.txt offset 0": "is empty",
        "c.txt offset 0": "is not UTF-8 (byte 0xff at offset 4 of the file)",
    }


def test_names_that_are_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    path.mkdir()
    (path / os.fsdecode(b"a\xfe.txt")).write_text("one\ntwo")
    (path / "b.txt").write_bytes(b"\xff")
    reader = TextFolder(str(path), 0.01, False)
    assert reader.fingerprint()
    documents = everything(reader) + everything(TextFolder(str(path), 0.01, True))
    assert "\\xff" in documents[0].where or "\\udcff" in documents[0].where
    "".join(document.where for document in documents).encode()


# ------------------------------------------------------------------------------- small sources
@pytest.mark.parametrize("text", ["ab", "one\ntwo\n", "word " * 900, "日本語" * 50, "a\n" * 30_000])
@pytest.mark.parametrize("holdout", [0.001, 0.01, 0.5, 0.99])
def test_the_only_piece_is_divided(tmp_path, text, holdout):
    (tmp_path / "a.txt").write_text(text)
    parts = [texts(TextFolder(str(tmp_path), holdout, held)) for held in (False, True)]
    assert list(map(len, parts)) == [1, 1]
    assert parts[0][0] + parts[1][0] == text
    assert all(part.strip() for (part,) in parts)
    if len(text) > 3000:
        assert abs(len(parts[1][0]) / len(text) - holdout) < 0.01


@pytest.mark.parametrize("holdout", [1e-9, 0.01, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 30])
@pytest.mark.parametrize("kind", ["jsonl", "array", "text"])
def test_both_parts_have_something(tmp_path, kind, count, holdout):
    rows = [{"text": f"row {n}"} for n in range(count)]
    if kind == "text":
        for n in range(count):
            (tmp_path / f"{n:02d}.txt").write_text(rows[n]["text"])
        (tmp_path / "aa.txt").touch()
    else:
        text = json.dumps(rows) if kind == "array" else "\n".join(map(json.dumps, rows))
        (tmp_path / "a.json").write_text(text)

    def read(held, shards):
        if kind == "text":
            return texts(TextFolder(str(tmp_path), holdout, held), shards)
        return texts(Jsonl(str(tmp_path), "text", "", holdout, held), shards)

    train, held = read(False, 1), read(True, 1)
    assert train
    assert held
    assert sorted(train + held) == sorted(row["text"] for row in rows)
    assert sorted(read(False, 3) + read(True, 3)) == sorted(train + held)


def test_what_cannot_be_divided_says_what_helps(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "only"}\n')
    reader = Jsonl(str(tmp_path), "text", "", 0.01, False)
    with pytest.raises(DataError, match=r"one record .*--config\.data\.holdout=0"):
        everything(reader)
    assert texts(Jsonl(str(tmp_path), "text", "", 0.0, False)) == ["only"]
    (tmp_path / "b.txt").write_text(" x\n")
    with pytest.raises(DataError, match=r"one letter"):
        everything(TextFolder(str(tmp_path), 0.01, False))


_WORDS = "the quick brown fox\n" * 40


def _tar(content):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("a.txt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (_WORDS.encode("utf-16-le"), "is half NUL bytes"),
        (_WORDS.encode("utf-32-be"), "is half NUL bytes"),
        (b"\0" * 5000, "is half NUL bytes"),
        (gzip.compress(_WORDS.encode("utf-16-le")), "is half NUL bytes"),
        (_tar(_WORDS.encode() * 9), "a tar archive"),
        (gzip.compress(_tar(_WORDS.encode() * 9)), "a tar archive"),
        (_WORDS.encode("utf-32"), "text in UTF-32"),
        (gzip.compress(_WORDS.encode("utf-16")), "text in UTF-16"),
        (gzip.compress(gzip.compress(_WORDS.encode())), "a gzip file in a gzip file"),
        (gzip.compress(b"PK\x03\x04 and more"), "a zip archive"),
    ],
)
def test_what_is_no_text_under_its_name_or_in_gzip_is_named(tmp_path, content, why):
    (tmp_path / "a.txt").write_bytes(content)
    try:
        said = " ".join(
            document.unusable
            for document in TextFolder(f"{tmp_path}/a.txt", 0.0, False).documents(0, 1)
        )
    except DataError as error:
        said = str(error)
    assert why in said


@pytest.mark.parametrize("path", ["~nobody77/x", "s3://bucket/x", "file:///x", " "])
def test_a_source_that_is_no_path_of_this_machine_is_refused(path):
    for values in (
        {"data.source": f"jsonl:{path}"},
        {"data.parts": [["pydoc", 1], (f"text:{path}", 2)]},
    ):
        with pytest.raises(ConfigError, match="PATH"):
            paths.check(values)
    with pytest.raises(ConfigError, match="jsonl:PATH"):
        Jsonl(path, "text", "", 0.0, False)
