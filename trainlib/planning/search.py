"""Finds settings that fit a pod with few compilations: the smallest slice, the largest batch, the
cheapest way to recompute.

Each search is a bisection over options in an order in which fitting is monotone: more chips of the
same kind, fewer examples, less kept for the backward pass. A compilation takes minutes, so every
answer is kept on disk under the hash of what was asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trainlib.chips import Target, usual
from trainlib.errors import CheckpointError, ConfigError, StorageError, UserError
from trainlib.files import write_atomically
from trainlib.seal import sealed, unsealed
from trainlib.untrusted_files import read_small

T = TypeVar("T")
REMAT_ORDER = ("none", "dots", "minimal", "exchange", "full")  # from fast and large to small


def first_that(options: Sequence[T], holds: Callable[[T], bool]) -> T | None:
    """The first option for which `holds`, or None; `holds` is False up to some option and True from
    it on. Asks about log2 of them.
    """
    low, high = 0, len(options)
    while low < high:
        middle = (low + high) // 2
        if holds(options[middle]):
            high = middle
        else:
            low = middle + 1
    return options[low] if low < len(options) else None


def largest_that(start: int, step: int, fits: Callable[[int], bool], limit: int = 2**20) -> int:
    """The largest multiple of `step`, to an eighth of itself, that fits; 0 when not even one does.

    Doubles or halves from `start` until one fits and its double does not, then bisects between.

    Args:
      start: where to begin, rounded to a multiple of `step`.
      step: what it is a multiple of.
      fits: True up to some size and False beyond.
      limit: nothing larger is tried.
    """
    size = max(1, start // step) * step
    if fits(size):
        while 2 * size <= limit and fits(2 * size):
            size *= 2
        if 2 * size > limit:
            return size
        low, high = size, 2 * size
    else:
        high, low = size, 0
        while high > step and not low:
            smaller = max(1, high // step // 2) * step
            if fits(smaller):
                low = smaller
            else:
                high = smaller
        if not low:
            return 0
    while high - low > max(step, low // 8 // step * step):
        middle = (low + high) // 2 // step * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclasses.dataclass(frozen=True)
class Question:
    """One configuration on one target.

    Attributes:
      target: its name.
      overrides: dotted key -> value, on top of the configuration.
    """

    target: str
    overrides: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join([self.target, *(f"{k}={v}" for k, v in self.overrides.items())])


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a search found: a question whose report says that it fits; None when nothing does."""

    question: Question | None
    report: dict[str, Any] | None


class Search:
    """Asks about variations of one configuration.

    Args:
      compiled: question -> report with `fits` (see `trainlib.planning.report`); slow.
      check: quick; raises ConfigError for a question that can never work.
      say: called with every question and its report.
    """

    def __init__(
        self,
        compiled: Callable[[Question], dict[str, Any]],
        check: Callable[[Question], object],
        say: Callable[[Question, dict[str, Any]], None],
    ):
        self._compiled, self._check, self._say = compiled, check, say

    def _report(self, question: Question) -> dict[str, Any]:
        report = self._compiled(question)
        self._say(question, report)
        return report

    def _fits(self, question: Question) -> bool:
        return self._report(question)["fits"]

    def _possible(self, questions: Iterable[Question]) -> list[Question]:
        """Those that can work; the error of the last one when none can."""
        fitting, error = [], None
        for question in questions:
            try:
                self._check(question)
            except ConfigError as raised:
                error = raised
            else:
                fitting.append(question)
        if not fitting and error is not None:
            raise error
        return fitting

    def _answer(self, question: Question | None) -> Answer:
        return Answer(question, None if question is None else self._compiled(question))

    def smallest_slice(self, target: Target) -> Answer:
        """The fewest chips of the target's kind; mesh rows take what the columns leave."""
        kind, slices = target.chip.name, target.slices
        names = [f"{slices}x{kind}:{t}" if slices > 1 else name for name, t in usual(kind).items()]
        overrides = {"mesh.data": -1}
        options = self._possible(Question(name, overrides) for name in names)
        return self._answer(first_that(options, self._fits))

    def largest_batch(self, target: Target, start: int, step: int) -> Answer:
        """The most examples in a step, a multiple of `step`, to an eighth of itself."""

        def question(size: int) -> Question:
            return Question(target.name, {"batch_size": size})

        self._possible([question(max(1, start // step) * step)])
        size = largest_that(start, step, lambda size: self._fits(question(size)))
        return self._answer(question(size) if size else None)

    def cheapest_remat(self, target: Target) -> Answer:
        """The policy that computes least again."""
        questions = [Question(target.name, {"model.remat": name}) for name in REMAT_ORDER]
        return self._answer(first_that(self._possible(questions), self._fits))


class Cache:
    """Reports by the hash of what was asked, one JSON file each.

    Args:
      folder: made when something is first kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.hits = 0

    def _saved(self, path: Path) -> dict[str, Any] | None:
        """A report as it was written, or None: what is damaged is computed again."""
        with contextlib.suppress(UserError):
            return unsealed(read_small(path), "a report", CheckpointError)
        return None

    def get(self, key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The report for `key` (plain data), computed when it is not there yet.

        Raises:
          StorageError: it cannot be saved.
        """
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        path = self.folder / f"{name[:24]}.json"
        if (report := self._saved(path)) is not None:
            self.hits += 1
            return report
        report = compute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, sealed(report), str(os.getpid()))
        except OSError as error:
            raise StorageError(f"A report cannot be kept in {self.folder}: {error}.") from error
        return report
