"""The lines of a prediction: what is read of each, and what is added to it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moe.decoding.answer import Answer, Scored
from moe.decoding.waiting import Question
from moe.tasks.task import words
from moe.text.json_rows import Bad, input_rows, read_rows
from moe.text.vocabulary import UNKNOWN, Vocabulary
from trainlib.errors import shown

INPUTS = "inputs"  # the field with the text for the model
# What is added to each line; a field of the user's with such a name would be lost.
ADDED: dict[str, type] = {"prediction": str, "truncated": bool, "unfinished": bool}
SEVERAL = "predictions"  # and this, where there are several answers

Line = dict[str, Any] | None  # None is a blank line


def added_fields(num_return_sequences: int) -> dict[str, type]:
    """The fields that each line gets, and their types."""
    return ADDED | ({SEVERAL: list} if num_return_sequences > 1 else {})


@dataclasses.dataclass
class Counts:
    """How many answers there are, and what of them is not whole."""

    answers: int = 0
    truncated: int = 0
    unfinished: int = 0
    short: int = 0  # lines with fewer answers than decoding.num_return_sequences

    def add(self, lines: list[Line], several: int) -> None:
        for line in filter(None, lines):
            self.answers += 1
            self.truncated += line["truncated"]
            self.unfinished += line["unfinished"]
            self.short += several > 1 and len(line[SEVERAL]) < several


def fields_of(question: Question, answers: Sequence[Answer | Scored]) -> dict[str, Any]:
    """What is added to the line of a question."""
    values = answers[0].text, question.cut, answers[0].cut
    fields: dict[str, Any] = dict(zip(ADDED, values, strict=True))
    scored = [answer for answer in answers if isinstance(answer, Scored)]
    if scored:
        fields[SEVERAL] = [
            {"text": answer.text, "score": answer.score, "unfinished": answer.cut}
            | ({} if answer.rank_score is None else {"rank_score": answer.rank_score})
            for answer in scored
        ]
    return fields


def check_input(path: Path, added: Iterable[str] = ADDED) -> int:
    """Number of lines of a file that can be answered, blank ones included.

    Raises:
      DataError: no file, no lines, lines without text, or with fields that answers would replace.
    """
    added = tuple(added)
    return sum(
        1
        for _ in input_rows(
            path,
            lambda row: _check(row, added),
            f'Give a JSONL file whose lines have the text for the model in the field "{INPUTS}".',
            f'Every line is a JSON object with text in the field "{INPUTS}", such as '
            f'{{"{INPUTS}": "rte hypothesis: .. premise: .."}}.',
        )
    )


def _check(row: dict[str, Any], added: Iterable[str]) -> None:
    words(row, INPUTS)
    for name in added:
        if name in row:
            raise Bad(f"has a field '{name}' of its own, which the answer would replace: rename it")


def unknown(path: Path, vocabulary: Vocabulary) -> str:
    """Says how many tokens of the inputs the vocabulary has no piece for; "" when none."""
    total = count = 0
    for _, row in read_rows(path):
        if isinstance(row, dict):
            ids = vocabulary.encode(row[INPUTS])
            total, count = total + len(ids), count + int((ids == UNKNOWN).sum())
    if not count:
        return ""
    return (
        f"unknown: {count:,} of {total:,} tokens of the inputs are what the vocabulary "
        f"{shown(vocabulary.name)} has no piece for"
    )


def read_lines(path: Path, start: int) -> Iterator[Line]:
    """The lines of a file from number `start` on."""
    rows = (row if isinstance(row, dict) else None for _, row in read_rows(path))
    return itertools.islice(rows, start, None)
