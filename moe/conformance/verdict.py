"""What the answers of a router say about it: right, a convention, a bug, or not expressed.

An answer that is not that of the case is held against the reference under each `Reading`, alone,
then in pairs and threes. The readings that explain most cases are tried first, so that a router
has few of them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from moe.conformance import reference
from moe.conformance.cases import Case
from moe.conformance.readings import (
    BUG,
    CONVENTION,
    IGNORED,
    NO_CAPACITY,
    NOT_FINITE,
    READINGS,
    TIES,
    UNEXPLAINED,
    Reading,
)
from moe.conformance.reference import PARTS, Answer
from moe.conformance.settings import Rules, rules
from trainlib.errors import DataError, shown

RIGHT, UNTOLD, UNEXPRESSED = "right", "not told", "not expressed"
OUTCOMES = (RIGHT, CONVENTION, BUG, UNEXPRESSED, UNTOLD)
RELATIVE, ABSOLUTE = 2e-4, 3e-5  # of float32 results against six digits
_SEARCHED = 8  # cases of one part that are searched in pairs and threes without success
Readings = tuple[Reading, ...]


class CannotExpress(Exception):
    """Raised by an adapter for a case that its router has no settings for; says what is missing."""


class Adapter(Protocol):
    """What is between the kit and a router; `docs/router_conformance.md` writes one.

    Attributes:
      name: of the router, with its version.
      declares: names of conventions that the router is known to follow. Only "no capacity" changes
        a verdict: without it, a router that drops nothing has ignored its capacity.
    """

    name: str
    declares: Sequence[str]

    def route(self, case: Case) -> Answer:
        """The answer to a case, of one layer or of several.

        Raises:
          CannotExpress: the router has no such settings.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Finding:
    """The verdict on one part of the answer to one case.

    Attributes:
      case: its name.
      part: "routing", "balance" or "z".
      outcome: one of `OUTCOMES`.
      readings: what explains it.
      detail: the first difference from the case, or what cannot be expressed.
    """

    case: str
    part: str
    outcome: str
    readings: Readings = ()
    detail: str = ""


def judge(
    adapter: Adapter, cases: Sequence[Case], seen: Callable[[Case], None] = lambda case: None
) -> list[Finding]:
    """Runs all cases and explains the answers.

    Args:
      adapter: the router.
      cases: the questions.
      seen: called after each case, for a line of progress.

    Raises:
      DataError: an answer has another shape than its case.
    """
    found: list[Finding] = []
    wrong: dict[str, list[tuple[Case, Answer, str]]] = {part: [] for part in PARTS}
    for case in cases:
        answer = _answer(adapter, case)
        seen(case)
        if isinstance(answer, Finding):
            found += [dataclasses.replace(answer, part=part) for part in PARTS]
            continue
        _check(case, answer)
        for part in PARTS:
            if not _told(answer, part):
                found.append(Finding(case.name, part, UNTOLD))
            elif detail := difference(case, answer, case.expected, part):
                wrong[part].append((case, answer, detail))
            else:
                found.append(Finding(case.name, part, RIGHT))
    routing: dict[str, Readings] = {}
    for part, answers in wrong.items():
        explained = explain(part, answers, routing)
        for (case, _, detail), why in zip(answers, explained, strict=True):
            if part == "routing":
                routing[case.name] = why
            if any(r.name == NO_CAPACITY for r in why) and NO_CAPACITY not in adapter.declares:
                why = tuple(IGNORED if r.name == NO_CAPACITY else r for r in why)
            outcome = BUG if any(r.kind == BUG for r in why) else CONVENTION
            found.append(Finding(case.name, part, outcome, why, detail))
    order = {case.name: number for number, case in enumerate(cases)}
    return sorted(found, key=lambda f: (order[f.case], PARTS.index(f.part)))


def _answer(adapter: Adapter, case: Case) -> Answer | Finding:
    try:
        return adapter.route(case)
    except CannotExpress as error:
        return Finding(case.name, "", UNEXPRESSED, detail=str(error))


def _told(answer: Answer, part: str) -> bool:
    return getattr(answer, "combine" if part == "routing" else part) is not None


def _check(case: Case, answer: Answer) -> None:
    shape = case.logits.shape[-3:]
    arrays = {"combine": answer.combine, "position": answer.position, **answer.gradients}
    for name, value in arrays.items():
        if value is not None and np.shape(value) != shape:
            raise DataError(
                f"The answer to {case.name} has '{shown(name)}' of shape {np.shape(value)}; it has "
                f"to be [sequences, tokens, experts], {shape}."
            )


def difference(case: Case, answer: Answer, want: Answer, part: str) -> str:
    """The first difference in a part of an answer; "" if there is none. Padding is not looked at,
    nor tokens whose logits are no numbers.
    """
    for name, got, expected in _figures(answer, want, part):
        close = np.isclose(got, expected, rtol=RELATIVE, atol=ABSOLUTE)
        if np.ndim(got):
            axes = (0, 3) if case.layers > 1 else (2,)
            close |= ~(case.mask & np.isfinite(case.logits).all(axes))[..., None]
        if not np.all(close):
            at = tuple(int(i) for i in np.argwhere(~np.asarray(close))[0]) if np.ndim(got) else ()
            where = f" of sequence {at[0]}, token {at[1]}, expert {at[2]}" if at else ""
            return f"{name}{where} is {np.asarray(got)[at]:.5g}, not {np.asarray(expected)[at]:.5g}"
    return ""


def _figures(
    answer: Answer, want: Answer, part: str
) -> Iterator[tuple[str, np.ndarray | float, np.ndarray | float]]:
    """(name, got, expected) of what the answer tells of a part."""
    names = ("combine", "position") if part == "routing" else (part,)
    for name in names:
        got, expected = getattr(answer, name), getattr(want, name)
        if got is not None and expected is not None:
            yield ("slot" if name == "position" else name), got, expected
    gradient = "combine" if part == "routing" else part
    if gradient in answer.gradients and gradient in want.gradients:
        yield f"gradient of {gradient}", answer.gradients[gradient], want.gradients[gradient]


# ------------------------------------------------------------------------------------ explain
def explain(
    part: str, answers: Sequence[tuple[Case, Answer, str]], routing: dict[str, Readings]
) -> list[Readings]:
    """The readings that explain each answer, `UNEXPLAINED` where none does.

    Args:
      part: of the answers, which is not that of the case in any of them.
      answers: (case, answer, anything).
      routing: case -> what explains its routing, on which the balance loss may hang.
    """
    votes: collections.Counter[Readings] = collections.Counter()
    found: list[Readings] = []
    failures = 0
    for case, answer, _ in answers:
        tried = _Trial(case, answer, part, routing.get(case.name, ()))
        usual = [readings for readings, _ in votes.most_common()]
        few = itertools.chain(usual, _sets(part, case, 0), _sets(part, case, 1))
        why = next(filter(tried, few), None)
        if why is None and failures < _SEARCHED:
            more = itertools.chain(_sets(part, case, 2), _sets(part, case, 3, usual))
            why = next(filter(tried, more), None)
            failures += why is None
        if why is not None:
            votes[why] += 1
        found.append(why if why is not None else (UNEXPLAINED,))
    order = [readings for readings, _ in votes.most_common()]
    for number, (case, answer, _) in enumerate(answers):
        tried = _Trial(case, answer, part, routing.get(case.name, ()))
        found[number] = tried.marked(next(filter(tried, order), found[number]))
    return found


def _sets(part: str, case: Case, size: int, usual: Sequence[Readings] = ()) -> Iterator[Readings]:
    """Sets of so many readings that change something, and not the same thing twice."""
    known = {reading.name for readings in usual for reading in readings}
    several = [
        reading
        for reading in READINGS
        if reading.part == part
        and (reading.changed(rules(case.settings)))
        and (size < 3 or reading.name in known)
    ]
    for readings in itertools.combinations(several, size):
        keys = [key for reading in readings for key in reading.changes]
        if len(set(keys)) == len(keys):
            yield readings


class _Trial:
    """Whether readings explain an answer: called with them."""

    def __init__(self, case: Case, answer: Answer, part: str, routing: Readings):
        self.case, self.answer, self.part = case, answer, part
        self.base = tuple(r for r in routing if r.kind != BUG)
        values = np.sort(case.logits, axis=-1)
        self.tied = bool(np.any(np.diff(values, axis=-1) == 0))
        self.finite = bool(np.isfinite(case.logits).all())

    def __call__(self, readings: Readings) -> bool:
        return self._how(readings) is not None

    def marked(self, readings: Readings) -> Readings:
        """The readings, with what else was needed."""
        if readings == (UNEXPLAINED,):
            return readings if self.finite else (NOT_FINITE,)
        return (*readings, *(self._how(readings) or ()))

    def _how(self, readings: Readings) -> Readings | None:
        """What else is needed to explain the answer: the readings of its routing, or that ties are
        decided in another way. None if it is not explained.
        """
        bases: list[Readings] = [()]
        if self.part == "balance" and self.base:
            bases.append(self.base)
        for base in bases:
            changes = {key: v for r in (*base, *readings) for key, v in r.changes.items()}
            asked = rules(self.case.settings, **changes)
            for tilt in range(3 if self.tied else 1):
                want = self._reference(asked, tilt)
                if not difference(self.case, self.answer, want, self.part):
                    return (*base, TIES) if tilt else base
        return None

    def _reference(self, asked: Rules, tilt: int) -> Answer:
        case = self.case
        if case.layers > 1:
            return reference.answer_of_layers(case.logits, case.mask, case.draws, asked)
        logits = self._tilted if tilt else case.logits
        if tilt == 2:
            logits = logits + 1e-10 * np.arange(case.logits.shape[-1])
        return reference.answer(logits, case.mask, case.draws, asked, (self.part,))

    @functools.cached_property
    def _tilted(self) -> np.ndarray:
        """Logits in which ties are decided as in the answer, as far as that shows."""
        used = 0.0 if self.answer.combine is None else self.answer.combine
        return self.case.logits + 1e-9 * (np.asarray(used) != 0) + 1e-9 * np.asarray(used)
