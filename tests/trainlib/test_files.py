"""Nothing is written through a link, and foreign text cannot steer a terminal."""

from __future__ import annotations

import os

import pytest

from trainlib import errors, files
from trainlib import untrusted_files as untrusted
from trainlib.errors import ConfigError, DataError


@pytest.fixture
def document(tmp_path):
    """Somebody's file, outside the directory that is written."""
    path = tmp_path / "document"
    path.write_text("precious")
    (tmp_path / "dir").mkdir()
    return path


def traps(directory, document):
    """Names in `directory` that lead to the document, or to nothing that is a file."""
    (directory / "soft").symlink_to(document)
    (directory / "dangling").symlink_to(document.with_name("made by a write"))
    os.link(document, directory / "hard")
    (directory / "folder").mkdir()
    os.mkfifo(directory / "pipe")
    return ("soft", "dangling", "hard", "folder", "pipe")


def test_no_write_goes_through_a_link(document, tmp_path):
    directory = tmp_path / "dir"
    for name in traps(directory, document):
        for write in (
            lambda path: files.write_atomically(path, "overwritten"),
            lambda path: os.close(files.open_to_write(path)),
            lambda path: os.close(files.open_to_write(path, append=True)),
        ):
            with pytest.raises(ConfigError, match="Nothing was written"):
                write(directory / name)
        if name != "folder":
            with pytest.raises(ConfigError, match="Nothing was written"):
                files.make_directory(directory / name)
    assert document.read_text() == "precious"
    assert not (tmp_path / "made by a write").exists()


def test_a_link_under_the_temporary_name_is_removed_and_not_followed(document, tmp_path):
    target = tmp_path / "dir" / "config.json"
    target.with_name("config.json.tmp").symlink_to(document)
    files.write_atomically(target, "new")
    assert target.read_text() == "new"
    assert document.read_text() == "precious"
    assert [path.name for path in target.parent.iterdir()] == ["config.json"]


def test_files_are_opened_in_place_with_their_content(tmp_path):
    path = tmp_path / "file"
    for expected in (b"", b"line\n"):
        descriptor = files.open_to_write(path, append=True)
        assert os.pread(descriptor, 100, 0) == expected
        os.write(descriptor, b"line\n")
        os.close(descriptor)
    files.make_directory(tmp_path / "made")
    files.make_directory(tmp_path / "made")


def test_what_is_read_is_bounded_before_it_is_read(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="larger than 64 MiB"):
        untrusted.read_small(path, error=DataError)
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("device", "pipe"):
        with pytest.raises(DataError, match="not a regular file"):
            untrusted.read_small(tmp_path / name, follow=True, error=DataError)
    path.unlink()
    path.write_bytes(b"\xef\xbb\xbf{}")
    (tmp_path / "link").symlink_to(path)
    assert untrusted.read_json(tmp_path / "link", follow=True) == {}


def test_text_of_json_is_unicode():
    for good in (rb'"\ud83d\ude00"', rb'"\\ud83d"'):
        assert untrusted.parse_json(good, "it")
    for bad in (rb'"\ud83d"', rb'{"\udc00": 1}', rb'["\ude00\ud83d"]'):
        with pytest.raises(DataError, match="surrogate"):
            untrusted.parse_json(bad, "it", error=DataError)


def test_foreign_text_is_one_plain_line():
    assert errors.shown("grün 猫 a b") == "grün 猫 a b"
    given = "a\x1b[2Jb\nc\r\u202ed\udcff\x9b\U000e0041"
    assert errors.shown(given) == r"a\x1b[2Jb\x0ac\x0d\u202ed\udcff\x9b\U000e0041"
    long = errors.shown("x" * 100_000, 100)
    assert len(long) <= 100
    assert "100,000 characters" in long
