"""Folders of UTF-8 text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from moe.text import file_reader
from moe.text.files import BOM, GZIP_ERRORS, TextFile, damaged_gzip
from moe.text.json_rows import not_utf8, open_rows
from moe.text.pieces import Pieces, divide
from moe.text.reader import Document, Kind, by_share
from moe.text.vocabulary import Vocabulary


class TextFolder(file_reader.FileReader):
    """UTF-8 text. A document is a piece of a file, up to the end of the line at about 64 KiB. Of a
    source with one piece, the end is held out."""

    features = ("targets",)

    def __init__(self, path: str, fraction: float, holdout: bool):
        super().__init__("text", path, fraction, holdout)

    def _keyed(
        self, shard: int, shards: int, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, Document]]:
        for file, start in self._pieces(shard, shards):
            starts = itertools.count(0, file_reader.PIECE_BYTES) if start is None else [start]
            path = self.path / file.name
            try:
                with open_rows(path) as opened:
                    pieces = Pieces(opened, file_reader.PIECE_BYTES)
                    for start in starts:
                        key = f"{file.name} {start}"
                        if not file.packed and not wanted(key):
                            continue
                        if (piece := pieces.read(start)) is None:
                            break
                        if wanted(key) and (document := self._document(file, start, *piece)):
                            yield key, document
            except GZIP_ERRORS as error:
                raise damaged_gzip(path, error) from None

    def _document(self, file: TextFile, start: int, begin: int, content: bytes) -> Document | None:
        where = self._where(file, f"offset {start}")
        try:
            text = content.removeprefix(b"" if begin else BOM).decode()
        except UnicodeDecodeError as error:
            skipped = begin or len(BOM) * content.startswith(BOM)
            return Document(where, {}, not_utf8(content[skipped - begin :], error, skipped))
        if 5 * text.count("\0") > 2 * len(text):  # a few are letters like others
            return Document(where, {}, "is half NUL bytes or more, as UTF-16 and binary files are")
        if text.strip():
            return Document(where, {"targets": text})
        if content or not start:  # else its only line began in a piece before
            return Document(where, {}, "is empty")
        return None

    def _divided(self, document: Document) -> Document:
        text = document.text["targets"]
        at = divide(text, self.fraction)
        if at is None:
            raise self._indivisible("one letter")
        part = text[at:] if self.holdout else text[:at]
        return document._replace(text={"targets": part})


def _make(config: ConfigDict, source: str, split: str, vocabulary: Vocabulary) -> TextFolder:
    return TextFolder(source.partition(":")[2], config.holdout, split == "holdout")


def _deciding(config: ConfigDict, source: str, split: str) -> list[Any]:
    return [config.holdout]


KIND = Kind("text:FOLDER", _make, _deciding, holds_out=by_share, is_path=True)
