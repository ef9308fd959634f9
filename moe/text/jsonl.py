"""Files of JSON objects, one a line or in an array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moe.text import file_reader
from moe.text.files import BOM, GZIP_ERRORS, TextFile, damaged_gzip
from moe.text.json_rows import (
    Bad,
    array_at_start,
    array_rows,
    lines,
    open_rows,
    parse_row,
    skip_line,
)
from moe.text.reader import Document, Kind, by_share
from moe.text.vocabulary import Vocabulary
from trainlib.errors import shown


class Jsonl(file_reader.FileReader):
    """JSON objects, one a line or in an array. A document is an object; blank lines are none."""

    def __init__(self, path: str, text: str, inputs: str, fraction: float, holdout: bool):
        super().__init__("jsonl", path, fraction, holdout)
        self.fields = {"inputs": inputs, "targets": text} if inputs else {"targets": text}
        self.features = tuple(self.fields)

    def _keyed(
        self, shard: int, shards: int, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, Document]]:
        last, read_to = "", 0  # no line begins before, whatever piece it lies in
        for file, start in self._pieces(shard, shards):
            path = self.path / file.name
            try:
                if start is None:
                    yield from self._whole(file, path, wanted)
                    continue
                if file.name != last:
                    last, read_to = file.name, 0
                if not file.size and not self.holdout:
                    yield f"{file.name} 0", Document(shown(path), {}, "is empty")
                if read_to >= start + file_reader.PIECE_BYTES:
                    continue
                with open_rows(path) as opened:
                    opened.seek(max(start - 1, 0))
                    read_to = start and start - 1 + skip_line(opened, b" ")
                    for offset, line in lines(opened, read_to):
                        if (read_to := offset) >= start + file_reader.PIECE_BYTES:
                            break
                        key = f"{file.name} {offset}"
                        if wanted(key) and (document := self._line(file, offset, line)):
                            yield key, document
                    else:
                        read_to = 1 << 62  # no line begins behind the last
            except GZIP_ERRORS as error:
                raise damaged_gzip(path, error) from None

    def _whole(
        self, file: TextFile, path: Path, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, Document]]:
        with open_rows(path) as opened:
            if array_at_start(opened):
                for number, row in array_rows(opened, path):
                    if wanted(key := f"{file.name} {number}"):
                        yield key, self._document(self._where(file, f"element {number}"), row)
                return
            for offset, line in lines(opened, 0):
                key = f"{file.name} {offset}"
                if wanted(key) and (document := self._line(file, offset, line)):
                    yield key, document

    def _line(self, file: TextFile, offset: int, line: bytes) -> Document | None:
        if not line.removeprefix(b"" if offset else BOM).strip():
            return None
        try:
            row = parse_row(line, offset)
        except Bad as error:
            row = error
        return self._document(self._where(file, f"offset {offset}"), row)

    def _document(self, where: str, row: dict[str, Any] | Bad) -> Document:
        if isinstance(row, Bad):
            return Document(where, {}, str(row))
        text = {}
        for feature, field in self.fields.items():
            value = row.get(field)
            if not isinstance(value, str) or not value.strip():
                return Document(where, {}, f"has no text in the field '{field}'")
            text[feature] = value
        return Document(where, text)

    def _divided(self, document: Document) -> Document:
        raise self._indivisible("one record that can be used")


def _make(config: ConfigDict, source: str, split: str, vocabulary: Vocabulary) -> Jsonl:
    fields = config.text_feature, config.inputs_feature
    return Jsonl(source.partition(":")[2], *fields, config.holdout, split == "holdout")


def _deciding(config: ConfigDict, source: str, split: str) -> list[Any]:
    return [config.holdout, config.text_feature, config.inputs_feature]


KIND = Kind("jsonl:PATH", _make, _deciding, holds_out=by_share, is_path=True)
