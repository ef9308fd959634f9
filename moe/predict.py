"""Answers to a file of texts: one JSON object a line in, the same with `prediction` and `truncated`
(whether the input lost its end) out, in order.

What is finished lies in OUTPUT.partial; the same command goes on from there after a stop, however
hard, and the file gets its name when all lines are answered.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from moe import plan as plan_lib
from moe.answer import Answerer
from moe.data import check_vocabulary, make_vocabulary
from moe.data.benchmark import Bad, json_lines, words
from moe.evaluate import load_weights
from trainlib.config import to_json
from trainlib.errors import ConfigError, DataError, Preempted, StorageError
from trainlib.interrupt import StopRequest
from trainlib.progress import Progress, summary

_FIELD = "inputs"
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
    if request.output.exists():
        raise ConfigError(
            f"--output={request.output} is there already. Remove it, or name another file."
        )
    total = check_input(request.input)
    plan = plan_lib.make(config)
    vocabulary = make_vocabulary(config.data)
    check_vocabulary(vocabulary, plan.model.vocab_size)
    answerer = Answerer(plan, vocabulary)
    number, params, identity = load_weights(plan, workdir, at_step)

    main_host = jax.process_index() == 0
    partial = _Partial(request, f"{to_json(config)} {identity}")
    done, cut, lost = partial.begin()
    if done and main_host:
        print(f"going on after {done:,} of {total:,} lines", flush=True)
    if lost and main_host:
        print(
            f"{partial.path} held answers to another input, or by other weights or settings "
            f"({lost:,} lines): they are replaced",
            flush=True,
        )
    progress = Progress(total, done, enabled=main_host, unit="line")
    with StopRequest() as stop:
        for rows in _batches(request.input, done, answerer.rows):
            questions = [answerer.question(row[_FIELD], n) for n, row in rows]
            texts = answerer.answers(params, questions)
            lines = [
                row | {"prediction": text, "truncated": q.cut}
                for (_, row), q, text in zip(rows, questions, texts, strict=True)
            ]
            partial.write(lines, main_host)
            done += len(lines)
            cut += sum(line["truncated"] for line in lines)
            progress.update(done)
            if stop.requested and done < total:
                progress.close()
                raise Preempted(
                    f"Stopped on request after {done:,} of {total:,} lines, which are in "
                    f"{partial.path}; the same command goes on from there."
                )
    progress.close()
    if main_host:
        partial.finish()
        rows = [("step", str(number)), ("lines", f"{total:,}"), answerer.truncation(cut, total)]
        print(summary(f"{config.name}: answers", [*rows, ("output", str(request.output))]))
    return 0


def check_input(path: Path) -> int:
    """Number of lines of a file that can be answered.

    Raises:
      DataError: no file, no lines, or lines without text.
    """
    bad, count = [], 0
    try:
        for where, row in json_lines(path):
            count += 1
            try:
                if isinstance(row, Bad):
                    raise row
                words(row, _FIELD)
                json.dumps(row, ensure_ascii=False).encode()
            except Bad as error:
                bad.append(f"{where} {error}")
            except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can write
                bad.append(f"{where} has {error.object[error.start]!r}, which is no character")
    except OSError as error:
        raise DataError(
            f"--input={path} cannot be read ({error.strerror}). Give a JSONL file whose lines have "
            f'the text for the model in the field "{_FIELD}".'
        ) from None
    if bad or not count:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        what = f"{len(bad)} lines of {count}: {'; '.join(bad[:_SHOWN])}{more}" if bad else "no line"
        raise DataError(
            f"--input={path} has {what}. Every line is a JSON object with text in the field "
            f'"{_FIELD}", such as {{"{_FIELD}": "rte hypothesis: .. premise: .."}}.'
        )
    return count


Rows = list[tuple[int, dict[str, Any]]]  # (number in the file, line)


def _batches(path: Path, start: int, size: int) -> Iterator[Rows]:
    lines = itertools.islice(enumerate(row for _, row in json_lines(path)), start, None)
    while rows := list(itertools.islice(lines, size)):
        yield rows


class _Partial:
    """The lines that are finished, and what they were made from."""

    def __init__(self, request: Request, made_by: str):
        self.output = request.output
        self.path = request.output.with_name(f"{request.output.name}.partial")
        self.note = request.output.with_name(f"{request.output.name}.partial.json")
        with request.input.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        made_by = hashlib.sha256(made_by.encode()).hexdigest()
        self.origin = {"input": content, "made_by": made_by}

    def begin(self) -> tuple[int, int, int]:
        """(lines, truncated ones) that an earlier call left, and how many lines it left of another
        input, other weights or another configuration, which are removed.
        """
        try:
            known = json.loads(self.note.read_text()) == self.origin and self.path.is_file()
        except (OSError, ValueError):
            known = False
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            before = self.path.read_bytes() if self.path.is_file() else b""
            whole = before[: before.rfind(b"\n") + 1] if known else b""
            with self.path.open("ab") as file:
                file.truncate(len(whole))
            self.note.write_text(json.dumps(self.origin))
        except OSError as error:
            raise self._refused(error) from None
        lines = whole.splitlines()
        cut = sum(json.loads(line)["truncated"] for line in lines)
        return len(lines), cut, 0 if known else before.count(b"\n")

    def write(self, lines: list[dict[str, Any]], enabled: bool) -> None:
        """Appends the lines of a batch."""
        if not enabled:
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise self._refused(error) from None

    def finish(self) -> None:
        """Gives the file its name."""
        self.path.replace(self.output)
        self.note.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"--output={self.output} cannot be written ({error.strerror}). Free space or name "
            "another file; finished lines stay."
        )
