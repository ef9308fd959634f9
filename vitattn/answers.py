"""What a model says of one image: as data, as text for people, and as JSON.

N heads, H W image, h w map of a layer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainlib.errors import shown
from trainlib.run.progress import Progress
from vitattn.labels.class_names import Names, as_unicode, numbered, printable
from vitattn.task import Task

LONGEST = 4096  # characters of a path that is printed


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came out for one image.

    Attributes:
      record: its number among the images that were asked for, from 0.
      error: why it could not be decoded; empty when it could.
      pixels: f32 [H, W, 3], normalised, as the model saw it.
      outputs: of the task, without the dimension of the batch.
      maps: attention layer -> f32 [N, h, w].
    """

    record: int
    error: str
    pixels: np.ndarray
    outputs: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]


def printed(
    stream: Iterator[Answer],
    total: int,
    size: int,
    render: Callable[[Answer], str],
    many: bool,
) -> Iterator[Answer]:
    """Passes answers on once they are printed.

    The line of progress shares the terminal with the answers. If these go to a file, it is on
    standard error.

    Args:
      stream: the answers.
      total: how many there will be.
      size: answers of one batch; progress is shown after each.
      render: turns an answer into text.
      many: whether to show progress.
    """
    live = sys.stdout.isatty()
    terminal = sys.stdout if live else sys.stderr
    with contextlib.closing(Progress(total, stream=terminal, unit="image")) as progress:
        for done, answer in enumerate(stream, 1):
            if many and live:
                progress.message(render(answer))
            else:
                print(render(answer), flush=live)
            if many and (done % size == 0 or done == total):
                progress.update(done)
            yield answer


def renderer(
    task: Task, paths: Sequence[Path], names: Names, as_json: bool
) -> Callable[[Answer], str]:
    """Returns what turns an answer into text: lines for people, or one line of JSON (image, and
    error or the fields of the task).

    Args:
      task: what the model learned.
      paths: the image files, in the order of the records.
      names: of the model's outputs.
      as_json: one line of JSON instead of lines for people.
    """
    words = [as_unicode(name) for name in numbered(names)] if as_json else printable(names)

    def as_text(answer: Answer) -> str:
        lines = [answer.error] if answer.error else task.as_lines(answer.outputs, words)
        indent = "    " if answer.error else "  "
        return "\n".join([shown(paths[answer.record], LONGEST), *(indent + line for line in lines)])

    def as_line(answer: Answer) -> str:
        fields: Mapping[str, Any] = {"error": answer.error}
        if not answer.error:
            fields = task.as_record(answer.outputs, words)
        return json.dumps({"image": as_unicode(paths[answer.record]), **fields})

    return as_line if as_json else as_text
