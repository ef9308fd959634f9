"""Answers to a file of texts: one JSON object a line in, the same with `prediction`, `truncated`
(whether the input lost its end) and `unfinished` (whether the answer did) out, line by line: blank
ones stay blank. With decoding.num_return_sequences above 1 there is `predictions` too, a list of
`text`, `score` (log-probability), `unfinished` and, of beams, `rank_score`, whose first is
`prediction`.
A JSON array of objects and gzip files are read as well.

What is finished lies in OUTPUT.partial; the same command goes on from there after a stop, however
hard, and the file gets its name when all lines are answered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from moe import plan as plan_lib
from moe.data import check_vocabulary, make_vocabulary
from moe.decoding.answer import Answer, Answerer, Question, Scored
from moe.tasks.task import words
from moe.text.json_rows import Bad, read_rows
from moe.text.vocabulary import UNKNOWN, Vocabulary
from trainlib import files
from trainlib.config import to_json
from trainlib.errors import ConfigError, DataError, Preempted, StorageError, shown
from trainlib.formats.load import load_weights
from trainlib.run.interrupt import StopRequest
from trainlib.run.progress import Progress, summary
from trainlib.untrusted_files import open_regular, read_json

_FIELD = "inputs"
# What is added to each line; a field of the user's own with such a name would be lost.
ADDED = {"prediction": str, "truncated": bool, "unfinished": bool}
SEVERAL = "predictions"  # and this, where there are several answers
_SHOWN = 20  # bad lines that an error lists


@dataclasses.dataclass(frozen=True)
class Request:
    """What to answer.

    Attributes:
      input: JSONL file; every line has the field `inputs`.
      output: JSONL file to be made.
    """

    input: Path
    output: Path


def run(config: ConfigDict, workdir: Path, request: Request, at_step: int | None = None) -> int:
    """Answers every line of a file with the weights of a run; returns the exit code.

    Raises:
      ConfigError: the output is there already.
      DataError: the input is absent or has lines without text; names them.
      CheckpointError: there is no checkpoint, or not that one.
      StorageError: the output cannot be written.
      Preempted: stopped on request; the same command goes on.
    """
    if os.path.lexists(request.output):
        raise ConfigError(
            f"--output={shown(request.output)} is there already. Remove it, or name another file."
        )
    added = _added(config)
    total = check_input(request.input, added)
    plan = plan_lib.make(config)
    vocabulary = make_vocabulary(config.data)
    check_vocabulary(vocabulary, plan.model.vocab_size)
    answerer = Answerer(plan, vocabulary)
    weights = load_weights(workdir, at_step, plan.abstract, plan.shardings)

    main_host = jax.process_index() == 0
    partial = _Partial(
        request,
        f"{to_json(config)} {weights.identity}",
        added,
        config.decoding.num_return_sequences,
    )
    done, counts, lost = partial.begin()
    if done and main_host:
        print(f"going on after {done:,} of {total:,} lines", flush=True)
    if lost and main_host:
        print(
            f"{shown(partial.path)} held answers to another input, or by other weights or settings "
            f"({lost:,} lines): they are replaced",
            flush=True,
        )
    if main_host and (told := unknown(request.input, vocabulary)):
        print(told, flush=True)
    progress = Progress(total, done, enabled=main_host, unit="line")
    with StopRequest() as stop:
        for rows in _batches(request.input, done, answerer.rows):
            lines = _answered(answerer, weights.params, rows, SEVERAL in added)
            partial.write(lines, main_host)
            done += len(lines)
            counts.add(lines, config.decoding.num_return_sequences)
            progress.update(done)
            if stop.requested and done < total:
                progress.close()
                raise Preempted(
                    f"Stopped on request after {done:,} of {total:,} lines, which are in "
                    f"{shown(partial.path)}; the same command goes on from there."
                )
    progress.close()
    if main_host:
        partial.finish()
        table = [("step", str(weights.step)), ("lines", f"{total:,}")]
        table.append(answerer.truncation(counts.truncated, counts.answers))
        table.append(answerer.unfinished(counts.unfinished, counts.answers))
        if counts.short:
            asked = (
                f"{config.decoding.num_return_sequences} answers: no more ended within the limit"
            )
            table.append(
                ("fewer", f"{counts.short:,} of {counts.answers:,} lines have fewer than {asked}")
            )
        table.append(("output", shown(request.output)))
        print(summary(f"{config.name}: answers", table))
    return 0


Line = dict[str, Any] | None  # None is a blank line
Rows = list[tuple[int, Line]]  # (number in the file, line)


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


def _added(config: ConfigDict) -> dict[str, type]:
    """The fields that each line gets, and their types."""
    return ADDED | ({SEVERAL: list} if config.decoding.num_return_sequences > 1 else {})


def _answered(answerer: Answerer, params: Any, rows: Rows, several: bool) -> list[Line]:
    """The lines of a batch with their answers; blank ones as they are."""
    asked = [(number, row) for number, row in rows if row is not None]
    questions = [answerer.question(row[_FIELD], number) for number, row in asked]
    if several:
        found = answerer.search(params, questions)
    else:
        found = ([answer] for answer in answerer.answers(params, questions))
    lines = {
        number: row | _fields(question, answers)
        for (number, row), question, answers in zip(asked, questions, found, strict=True)
    }
    return [lines.get(number) for number, _ in rows]


def _fields(question: Question, found: list[Answer] | list[Scored]) -> dict[str, Any]:
    """What is added to one line."""
    values = found[0].text, question.cut, found[0].cut
    fields: dict[str, Any] = dict(zip(ADDED, values, strict=True))
    scored = [answer for answer in found if isinstance(answer, Scored)]
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
    bad, count, answers = [], 0, 0
    try:
        for where, row in read_rows(path):
            count += 1
            answers += row is not None
            try:
                _check(row, added)
            except Bad as error:
                bad.append(f"{where} {error}")
    except OSError as error:
        raise DataError(
            f"--input={shown(path)} cannot be read ({error.strerror}). Give a JSONL file whose "
            f'lines have the text for the model in the field "{_FIELD}".'
        ) from None
    if bad or not answers:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        what = f"{len(bad)} lines of {count}: {'; '.join(bad[:_SHOWN])}{more}" if bad else "no line"
        raise DataError(
            f"--input={shown(path)} has {what}. Every line is a JSON object with text in the field "
            f'"{_FIELD}", such as {{"{_FIELD}": "rte hypothesis: .. premise: .."}}.'
        )
    return count


def _check(row: dict[str, Any] | Bad | None, added: Iterable[str]) -> None:
    if isinstance(row, Bad):
        raise row
    if row is None:
        return
    words(row, _FIELD)
    for name in added:
        if name in row:
            raise Bad(f"has a field '{name}' of its own, which the answer would replace: rename it")


def unknown(path: Path, vocabulary: Vocabulary) -> str:
    """Says how many tokens of the inputs the vocabulary has no piece for; "" when none."""
    total = count = 0
    for _, row in read_rows(path):
        if isinstance(row, dict):
            ids = vocabulary.encode(row[_FIELD])
            total, count = total + len(ids), count + int((ids == UNKNOWN).sum())
    if not count:
        return ""
    return (
        f"unknown: {count:,} of {total:,} tokens of the inputs are what the vocabulary "
        f"{shown(vocabulary.name)} has no piece for"
    )


def _batches(path: Path, start: int, size: int) -> Iterator[Rows]:
    rows = (row if isinstance(row, dict) else None for _, row in read_rows(path))
    lines = itertools.islice(enumerate(rows), start, None)
    while batch := list(itertools.islice(lines, size)):
        yield batch


class _Partial:
    """The lines that are finished, and what they were made from."""

    def __init__(self, request: Request, made_by: str, added: Mapping[str, type], several: int = 1):
        self.output, self.added, self.several = request.output, added, several
        self.path = request.output.with_name(f"{request.output.name}.partial")
        self.note = request.output.with_name(f"{request.output.name}.partial.json")
        with open_regular(request.input, follow=True, error=DataError) as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        made_by = hashlib.sha256(made_by.encode()).hexdigest()
        self.origin = {"input": content, "made_by": made_by}

    def begin(self) -> tuple[int, Counts, int]:
        """(lines, counts) that an earlier call left, and how many lines it left of another input,
        other weights or another configuration, which are removed, as is what is damaged.
        """
        known = False
        with contextlib.suppress(DataError):
            known = read_json(self.note, error=DataError) == self.origin
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(files.open_to_write(self.path), "r+b") as file:
                before = file.read()
                lines, size = _whole(before, self.added) if known else ([], 0)
                file.truncate(size)
            files.write_atomically(self.note, json.dumps(self.origin))
        except OSError as error:
            raise self._refused(error) from None
        counts = Counts()
        counts.add(lines, self.several)
        return len(lines), counts, 0 if known else before.count(b"\n")

    def write(self, lines: list[Line], enabled: bool) -> None:
        """Appends the lines of a batch."""
        if not enabled:
            return
        text = "".join(
            (json.dumps(line, ensure_ascii=False) if line else "") + "\n" for line in lines
        )
        try:
            with os.fdopen(files.open_to_write(self.path, append=True), "wb") as file:
                file.write(text.encode())
        except OSError as error:
            raise self._refused(error) from None

    def finish(self) -> None:
        """Gives the file its name."""
        self.path.replace(self.output)
        self.note.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"--output={shown(self.output)} cannot be written ({error.strerror}). Free space or "
            "name another file; finished lines stay."
        )


def _whole(content: bytes, added: Mapping[str, type]) -> tuple[list[Line], int]:
    """The finished lines of a file that was cut off somewhere, and how many bytes they are."""
    lines: list[Line] = []
    size = 0
    for text in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        line = None
        if text.strip():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not isinstance(line, dict) or not all(
                isinstance(line.get(name), kind) for name, kind in added.items()
            ):
                break
        lines.append(line)
        size += len(text)
    return lines, size
