"""What a file of pairs holds, in one pass: its tasks, what is held out of each, what repeats.

A row is held out by the hash of its task and inputs, so that the same question is never on both
sides, and rows that are added move no other.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moe.pairs.example import example_of, task_of
from moe.pairs.rows import FIELDS, rows_of
from moe.tasks.task import TextExample
from moe.text.json_rows import Bad
from moe.text.reader import draw
from trainlib.errors import DataError, nearest, shown

_SHOWN = 5  # rows or fields that a message names


@dataclasses.dataclass
class TaskFacts:
    """What a file holds of one task.

    Attributes:
      choices: of the first row.
      low: the lowest draw of the rows that have a target, which is held out where anything is.
      high: the highest, which is trained on.
      rows: how many rows can be read.
      with_choices: how many of them have choices.
      same_choices: whether all rows have these.
    """

    choices: tuple[str, ...]
    low: int = 2**64
    high: int = -1
    rows: int = 0
    with_choices: int = 0
    same_choices: bool = True

    def add(self, key: int, example: TextExample) -> None:
        """Counts one row."""
        if example.known:
            self.low, self.high = min(self.low, key), max(self.high, key)
        self.rows += 1
        self.with_choices += bool(example.choices)
        self.same_choices &= example.choices == self.choices

    def limit(self, fraction: float) -> int:
        """Rows with a draw below it are held out: about the fraction, at least one input of two,
        and never all; 0 where nothing is.
        """
        if not fraction or not self.divisible:
            return 0
        return min(max(int(fraction * 2**64), self.low + 1), self.high)

    @property
    def divisible(self) -> bool:
        """Whether something can be held out and something left."""
        return self.low < self.high


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a file holds.

    Attributes:
      tasks: by name, in the order of their first rows.
      keys: uint64 [rows], the draw of each row that can be used.
      owners: uint32 [rows], the number of its task.
      unread: fields that are not read -> in how many rows they are.
    """

    tasks: Mapping[str, TaskFacts]
    keys: np.ndarray
    owners: np.ndarray
    unread: Mapping[str, int]

    def held_out(self, fraction: float) -> int:
        """How many rows are held out."""
        limits = [facts.limit(fraction) for facts in self.tasks.values()]
        return int((self.keys < np.asarray(limits, np.uint64)[self.owners]).sum())

    def notes(self, key: str) -> list[str]:
        """What a user may not expect of the file that a configuration key names, as lines."""
        lines = []
        if repeated := len(self.keys) - len(np.unique(self.keys)):
            lines.append(
                f"repeated {repeated:,} of {len(self.keys):,} rows of {key} have a task and inputs "
                "that another has"
            )
        if self.unread:
            named = [f"{shown(name, 40)} ({count:,})" for name, count in self.unread.items()]
            more = ", .." * (len(named) > _SHOWN)
            hints = "".join(nearest(name, FIELDS) for name in list(self.unread)[:_SHOWN])
            lines.append(
                f"not read fields of {key}: {', '.join(named[:_SHOWN])}{more}. {hints}".rstrip()
            )
        return lines


def key_of(task: str, inputs: str) -> int:
    """The draw of a row, a number of 64 bits."""
    return draw(f"{task}\n{inputs}")


def survey(path: Path, key: str) -> Survey:
    """Reads a file once; a file that did not change since is not read again in this process.

    Args:
      path: the file.
      key: the configuration key that names it.

    Raises:
      DataError: it cannot be read, or has no row that can be used; names the first that cannot.
      ConfigError: the library that reads its format is not installed.
    """
    try:
        status = os.stat(path)
        looks = status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
    except OSError:  # said by who opens it
        looks = ()
    return _survey(path, key, looks)


@functools.lru_cache(maxsize=8)
def _survey(path: Path, key: str, looks: tuple[int, ...]) -> Survey:
    tasks: dict[str, TaskFacts] = {}
    keys, owners, numbers = array.array("Q"), array.array("I"), dict[str, int]()
    unread: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    for number, (where, row) in enumerate(rows_of(path, key), start=1):
        try:
            if isinstance(row, Bad):
                raise row
            unread.update(name for name in row if name not in FIELDS)
            task, example = task_of(row), example_of(row, number)
        except Bad as error:
            bad += [f"{where} {error}"] if len(bad) < _SHOWN else []
            continue
        drawn = key_of(task, example.inputs)
        facts = tasks.setdefault(task, TaskFacts(example.choices))
        facts.add(drawn, example)
        keys.append(drawn)
        owners.append(numbers.setdefault(task, len(numbers)))
    if not tasks:
        why = f"no row that can be used: {'; '.join(bad)}" if bad else "no rows"
        raise DataError(
            f"{key}={shown(path)} has {why}. A row has text in the field 'inputs' and what is "
            'right in \'targets\', such as {"inputs": "Is it so?", "targets": "yes"}.'
        )
    return Survey(tasks, np.frombuffer(keys, np.uint64), np.frombuffer(owners, np.uint32), unread)
