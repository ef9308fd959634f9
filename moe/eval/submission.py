"""Files for the leader board of SuperGLUE, and a plain form for all other tasks.

The leader board takes ten files of the test split, named as the folders: BoolQ.jsonl, CB.jsonl, ..,
AX-b.jsonl and AX-g.jsonl. An answer that names no class becomes the first one, because it takes
classes only. DPR is no part of it and is left out. Corrected sentences stand one a line in a file
.txt, in the order of the published ones, as the BEA-2019 shared task takes them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from moe.eval.named import class_of
from moe.eval.scores import wsc_class
from moe.tasks.registry import SUPERGLUE, benchmark
from moe.tasks.task import TEST, TextExample
from trainlib.errors import ConfigError, StorageError
from trainlib.files import write_atomically

Lines = list[dict[str, Any]]
BOARD = (*SUPERGLUE, "axb", "axg")


def _class(example: TextExample, answer: str) -> int:
    return max(0, class_of(example, answer))


def _labels(words: Sequence[Any]) -> Callable[[Sequence[TextExample], Sequence[str]], Lines]:
    def lines(examples: Sequence[TextExample], answers: Sequence[str]) -> Lines:
        pairs = zip(examples, answers, strict=True)
        return [{"idx": e.key[0], "label": words[_class(e, a)]} for e, a in pairs]

    return lines


def _wsc(examples: Sequence[TextExample], answers: Sequence[str]) -> Lines:
    pairs = zip(examples, answers, strict=True)
    return [{"idx": e.key[0], "label": str(wsc_class(e, a) == 1)} for e, a in pairs]


def _record(examples: Sequence[TextExample], answers: Sequence[str]) -> Lines:
    pairs = zip(examples, answers, strict=True)
    return [{"idx": e.key[-1], "label": answer} for e, answer in pairs]


def _multirc(examples: Sequence[TextExample], answers: Sequence[str]) -> Lines:
    paragraphs: dict[Any, dict[Any, Lines]] = {}
    for example, answer in zip(examples, answers, strict=True):
        paragraph, question, number = example.key
        lines = paragraphs.setdefault(paragraph, {}).setdefault(question, [])
        lines.append({"idx": number, "label": _class(example, answer)})
    return [
        {
            "idx": paragraph,
            "passage": {"questions": [{"idx": q, "answers": lines} for q, lines in asked.items()]},
        }
        for paragraph, asked in paragraphs.items()
    ]


def _plain(examples: Sequence[TextExample], answers: Sequence[str]) -> Lines:
    pairs = zip(examples, answers, strict=True)
    return [{"id": "/".join(map(str, e.key)), "prediction": answer} for e, answer in pairs]


def _own(examples: Sequence[TextExample], answers: Sequence[str]) -> Lines:
    """Rows of one's own with the answers; `row` counts those of the file that are not blank."""
    return [
        {"row": e.key[0], "inputs": e.inputs, "targets": list(e.targets), "prediction": answer}
        for e, answer in zip(examples, answers, strict=True)
    ]


_BOOL = ("false", "true")
_FORMS = {
    "boolq": _labels(_BOOL),
    "wic": _labels(_BOOL),
    "copa": _labels((0, 1)),
    "multirc": _multirc,
    "record": _record,
    "wsc": _wsc,
}


def lines_of(
    task: str, examples: Sequence[TextExample], answers: Sequence[str], own: bool = False
) -> Lines:
    """The lines of one task; `own`: it is one of the user's, whatever its name."""
    if own:
        return _own(examples, answers)
    if task in BOARD:
        return _FORMS.get(task, _labels(benchmark(task).labels))(examples, answers)
    return _plain(examples, answers)


def file_of(task: str, own: bool = False) -> str:
    """Name of the file of a task."""
    if _sentences(task, own):
        return f"{task}.txt"
    board = task in BOARD and not own
    return f"{benchmark(task).folders[0] if board else task}.jsonl"


def content_of(
    task: str, examples: Sequence[TextExample], answers: Sequence[str], own: bool = False
) -> str:
    """What stands in the file of a task."""
    if _sentences(task, own):
        return "".join(f"{' '.join(answer.split())}\n" for answer in answers)
    lines = lines_of(task, examples, answers, own)
    return "".join(json.dumps(line, ensure_ascii=not own) + "\n" for line in lines)


def _sentences(task: str, own: bool) -> bool:
    return not own and benchmark(task).metric == "grammar"


def missing(tasks: Collection[str], split: str) -> str:
    """What prevents the files of these tasks from being a submission to SuperGLUE; "" where nothing
    does, or where none of them is a task of SuperGLUE.
    """
    if not set(tasks) & set(BOARD):
        return ""
    absent = [file_of(task) for task in BOARD if task not in tasks]
    parts = []
    if split != TEST:
        parts.append(
            f"these answer the split '{split}', and the leader board takes '{TEST}': "
            f"--config.evaluation.split={TEST}"
        )
    if absent:
        parts.append(
            f"there is no {', '.join(absent)}: "
            "--config.data.source=task:superglue,diagnostics makes all"
        )
    return "; ".join(parts)


def prepare(directory: Path) -> None:
    """Makes the directory, before anything is answered: answers of two evaluations do not mix.

    Raises:
      ConfigError: it holds predictions already.
      StorageError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            there = sorted(p.name for p in directory.iterdir() if p.suffix in (".jsonl", ".txt"))
    except OSError as error:
        raise _refused(directory, error) from None
    if there:
        raise ConfigError(
            f"--write_predictions={directory} holds predictions already ({', '.join(there[:3])}"
            f"{', ..' if there[3:] else ''}). Remove them, or name another directory."
        )


def write(
    directory: Path,
    examples: dict[str, list[TextExample]],
    answers: dict[str, list[str]],
    own: Collection[str] = (),
) -> list[Path]:
    """Writes one file a task, none for DPR, in a prepared directory; returns their paths.

    Args:
      directory: see `prepare`.
      examples: by task.
      answers: to each of them.
      own: tasks of the user's own.

    Raises:
      StorageError: the directory cannot be written.
    """
    written = []
    try:
        for task, asked in examples.items():
            if task == "dpr" and task not in own:
                continue
            path = directory / file_of(task, task in own)
            write_atomically(path, content_of(task, asked, answers[task], task in own))
            written.append(path)
    except OSError as error:
        raise _refused(directory, error) from None
    return written


def _refused(directory: Path, error: OSError) -> StorageError:
    return StorageError(
        f"--write_predictions={directory} cannot be written ({error.strerror}). Choose a directory "
        "that you may write to."
    )
