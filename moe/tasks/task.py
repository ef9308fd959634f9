"""What a fine-tuning task is: where its records come from, how one becomes text, what is right.

A record has the form in which TFDS gives it, whatever the source: flat, with classes as numbers and
-1 where the class is not published. A task turns it into one `TextExample`. Texts are those of T5
(arXiv 1910.10683, appendix D), so that checkpoints of that family can be compared.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe.text.json_rows import Bad, open_rows, read_rows
from trainlib.errors import DataError, nearest
from trainlib.untrusted_files import parse_json

Record = dict[str, Any]
Rows = Iterator[tuple[str, Any]]  # (position in the file, row as published, a `Bad` or a `Note`)

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
UNKNOWN_LABEL = -1
_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


class Note(str):
    """Instead of a row: what to say about a split."""


@dataclasses.dataclass(frozen=True)
class TextExample:
    """One question as text, and all that its score and its line in a submission need.

    Attributes:
      inputs: what the encoder reads.
      targets: texts to train on, one training example each; none where there is nothing to learn.
      key: names the example among those of its task; for tasks scored in groups, the group first.
        () where examples have no name: none is then found to be repeated.
      label: number of the right class, or -1.
      choices: every text that can be an answer, in the order of the classes; () for free answers.
      answers: accepted answers, for free answers; the referent, for WSC.
      where: file and line, for messages.
    """

    inputs: str
    targets: tuple[str, ...]
    key: tuple[Hashable, ...]
    label: int = UNKNOWN_LABEL
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    where: str = ""

    @property
    def known(self) -> bool:
        """Whether the right answer is published."""
        return self.label != UNKNOWN_LABEL or bool(self.targets)


ToText = Callable[[Record], TextExample]  # raises `Bad`
ToRecords = Callable[[Any], list[Record]]  # from a row as published; raises `Bad`


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A task.

    Attributes:
      name: as in `data.source`.
      metric: key of `moe.eval.scores.METRICS`, or names of `moe.eval.named` with commas between.
      text: record -> example; raises `Bad` for a field that is absent, empty or of another type,
        whatever the source.
      records: row as published -> records; raises `Bad`.
      folders: names that its directory has in the published archive.
      files: split -> name of its file there.
      read: file -> its rows.
      tfds: builder, configuration and version; "" where TFDS has no such set.
      tfds_splits: split -> what TFDS calls it; the splits that are published.
      labels: words of the classes, by number.
      group: name that stands for this task and others of its kind in `data.source`.
      answer: field of a published record with the right answer; only the test split may lack it.
    """

    name: str
    metric: str
    text: ToText
    records: ToRecords
    folders: tuple[str, ...]
    files: Mapping[str, str]
    tfds: str
    tfds_splits: Mapping[str, str]
    labels: tuple[str, ...] = ()
    group: str = ""
    answer: str = "label"
    read: Callable[[Path], Rows] = dataclasses.field(default=lambda path: json_lines(path))


def json_lines(path: Path) -> Rows:
    """The objects of a JSONL file, by line."""
    return ((where, row) for where, row in read_rows(path) if row is not None)


def json_document(path: Path) -> Any:
    """The content of a JSON file; raises `Bad`."""
    try:
        return parse_json(read_file(path), "", error=DataError)
    except DataError as error:
        raise Bad(str(error).strip().removesuffix(".")) from None


def read_file(path: Path) -> bytes:
    """All of a published file.

    Raises:
      OSError: it is not there.
      DataError: it is a pipe, a device or a folder.
    """
    with open_rows(path) as file:
        return file.read()


def field(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a published row, of the type that it must have.

    Raises:
      Bad: it is absent or of another type.
    """
    if not isinstance(row, Mapping):
        raise Bad(f"has {_shown(row)} where an object with the field '{name}' is needed")
    if name not in row:
        there = sorted(row)
        raise Bad(f"has no field '{name}'. {nearest(name, there)}{_fields(row)}")
    value = row[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_NAMES.get(k, k.__name__) for k in kinds)
        raise Bad(f"has {_shown(value)} in the field '{name}', where {wanted} is needed")
    return value


def no_answer(row: Any, name: str) -> Bad:
    """A row without the field of its answer outside of the test split."""
    absent = isinstance(row, Mapping) and name not in row
    hint = f". {nearest(name, row)}{_fields(row)}" if absent else ""
    return Bad(f"has no answer in the field '{name}': only the test split may lack it{hint}")


def _fields(row: Mapping[str, Any]) -> str:
    return f"Fields: {', '.join(sorted(row)) or 'none'}"


def words(row: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Fields that hold text, none of them empty."""
    fields = {name: field(row, name, str) for name in names}
    for name, value in fields.items():
        if not value.strip():
            raise Bad(f"has an empty field '{name}'")
    return fields


def texts(row: Mapping[str, Any], name: str, blank: bool = False) -> list[str]:
    """A field that holds a list of texts; empty ones are left out where `blank` allows them."""
    values = field(row, name, list)
    for value in values:
        if not isinstance(value, str) or not (value.strip() or blank):
            raise Bad(f"has {_shown(value)} in the list '{name}', where text is needed")
    return [value for value in values if value.strip()]


def _shown(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}.."


def label(row: Mapping[str, Any], classes: Sequence[Any], name: str = "label") -> int:
    """Number of the class in a field, -1 where the row has none.

    Raises:
      Bad: a value that is no class.
    """
    if name not in row:
        return UNKNOWN_LABEL
    value = row[name]
    for number, allowed in enumerate(classes):
        if value == allowed and isinstance(value, bool) == isinstance(allowed, bool):
            return number
    shown = ", ".join(json.dumps(value) for value in classes)
    raise Bad(f"has the {name} {_shown(value)}, which is none of {shown}")


def class_number(record: Mapping[str, Any], classes: int, name: str = "label") -> int:
    """The number of a class in a record, -1 where it is not published.

    Raises:
      Bad: it is absent or no class.
    """
    number = field(record, name, int)
    if not UNKNOWN_LABEL <= number < classes:
        raise Bad(f"has the {name} {number}, which is none of 0 to {classes - 1}, nor -1")
    return number


def phrase(prefix: str, record: Mapping[str, Any], *names: str) -> str:
    """`prefix name: text name: text ..`, the format of T5 for classification."""
    fields = words(record, *names)
    return " ".join([prefix, *(f"{name}: {text}" for name, text in fields.items())])


def classified(
    inputs: str, record: Mapping[str, Any], labels: tuple[str, ...], *key: Hashable
) -> TextExample:
    """An example whose answer is the word of its class."""
    number = class_number(record, len(labels))
    targets = (labels[number],) if number >= 0 else ()
    return TextExample(inputs, targets, key, number, labels)
