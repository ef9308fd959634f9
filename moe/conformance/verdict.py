"""What the answers of a router say about it: right, a convention, a bug, or not expressed.

An answer that is not that of the case is held against the reference under each `Reading`, alone,
then in pairs and threes. The readings that explain most cases are tried first, so that a router
has few of them.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from moe.conformance import reference
from moe.conformance.cases import Case
from moe.conformance.readings import (
    BUG,
    CONVENTION,
    IGNORED,
    NO_CAPACITY,
    NO_TOKENS,
    NOT_FINITE,
    READINGS,
    TIES,
    UNEXPLAINED,
    Reading,
)
from moe.conformance.reference import GRADIENTS, PARTS, Answer
from moe.conformance.settings import Rules, rules
from trainlib.errors import ConfigError, DataError, UserError, nearest, shown

RIGHT, UNTOLD, UNEXPRESSED = "right", "not told", "not expressed"
OUTCOMES = (RIGHT, CONVENTION, BUG, UNEXPRESSED, UNTOLD)
JUDGED = (RIGHT, CONVENTION, BUG)  # those that say something about the router
RELATIVE, ABSOLUTE = 2e-4, 3e-5  # of float32 results against six digits
_SEARCHED = 2  # cases of one part that are searched in pairs and threes without success
Readings = tuple[Reading, ...]


class CannotExpress(Exception):
    """Raised by an adapter for a case that its router has no settings for; says what is missing."""


class Adapter(Protocol):
    """What is between the kit and a router; `docs/router_conformance.md` writes one.

    Attributes:
      name: of the router, with its version.
      declares: names of conventions that the router is known to follow, which are tried first.
        "no capacity" belongs there where it is meant: a router that drops nothing and does not
        say so has ignored its capacity.

    It may have an attribute `understands` too, those of `moe.conformance.settings.EXTENSIONS` that
    it reads; a case with others is not put to it and counts as not expressed.
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


def judge(adapter: Adapter, cases: Sequence[Case]) -> list[Finding]:
    """Runs all cases and explains the answers.

    Args:
      adapter: the router.
      cases: the questions.

    Raises:
      ConfigError: the adapter stops with an error, or returns something else.
      DataError: an answer has another shape than its case, or holds others than numbers.
    """
    found: list[Finding] = []
    wrong: dict[str, list[tuple[Case, Answer, str]]] = {part: [] for part in PARTS}
    for case in cases:
        answer = _answer(adapter, case)
        if isinstance(answer, Finding):
            found += [dataclasses.replace(answer, part=part) for part in PARTS]
            continue
        answer = _checked(case, answer)
        for part in PARTS:
            if not (_told(answer, part) and _told(case.expected, part)):
                found.append(Finding(case.name, part, UNTOLD))
            elif detail := difference(case, answer, case.expected, part):
                wrong[part].append((case, answer, detail))
            else:
                found.append(Finding(case.name, part, RIGHT))
    routing: dict[str, Readings] = {}
    for part, answers in wrong.items():
        explained = explain(part, answers, routing, adapter.declares)
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
    understood = getattr(adapter, "understands", ())
    beyond = [name for name in case.settings.extensions if name not in understood]
    if beyond:
        return Finding(case.name, "", UNEXPRESSED, detail=f"no {' and no '.join(beyond)}")
    try:
        # A copy: an adapter that writes into its case would be held against what it wrote.
        answer = adapter.route(copy.deepcopy(case))
    except CannotExpress as error:
        return Finding(case.name, "", UNEXPRESSED, detail=str(error))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"The adapter {shown(adapter.name)} stops with {type(error).__name__} in case "
            f"{case.name}: {shown(error)}. --debug prints the traceback. For a case that a router "
            "has no settings for it raises moe.conformance.verdict.CannotExpress."
        ) from error
    if not isinstance(answer, Answer):
        raise ConfigError(
            f"The adapter {shown(adapter.name)} returns {shown(type(answer).__name__)} for case "
            f"{case.name}; it has to be a moe.conformance.reference.Answer."
        )
    return answer


def _told(answer: Answer, part: str) -> bool:
    return getattr(answer, "combine" if part == "routing" else part) is not None


def _checked(case: Case, answer: Answer) -> Answer:
    """The answer with float64 arrays and losses, and integers for `choice`.

    Raises:
      DataError: something in it is of another shape, or holds others than numbers.
    """
    shape = case.logits.shape[-3:]
    words = "[sequences, tokens, experts]"
    if unknown := set(answer.gradients) - set(GRADIENTS):
        name = min(map(str, unknown))
        raise DataError(
            f"The answer to {case.name} has a gradient of '{shown(name)}'. "
            f"{nearest(name, GRADIENTS)}There are those of {', '.join(GRADIENTS)}."
        )

    def array(name: str, value: Any, shape: tuple[int, ...], words: str) -> Any:
        if value is None:
            return None
        wanted = f"it has to be {words}{f', {shape}' if shape else ''}"
        try:
            read = np.asarray(value)
            if read.dtype.kind in "OSUMmc":
                raise TypeError
            read = read if read.dtype.kind in "biu" else read.astype(np.float64)
        except (ValueError, TypeError, RuntimeError):
            raise DataError(
                f"The answer to {case.name} has '{shown(name)}' of others than numbers; {wanted}."
            ) from None
        if read.shape != shape:
            raise DataError(
                f"The answer to {case.name} has '{shown(name)}' of shape {read.shape}; {wanted}."
            )
        return read

    choice = array(
        "choice", answer.choice, (*shape[:2], case.settings.top_k), "[sequences, tokens, choices]"
    )
    if choice is not None and not np.all((choice >= 0) & (choice < shape[-1])):
        raise DataError(
            f"The answer to {case.name} has experts in 'choice' that are not 0 to {shape[-1] - 1}."
        )
    balance, z = (array(n, getattr(answer, n), (), "a number") for n in ("balance", "z"))
    return Answer(
        array("combine", answer.combine, shape, words),
        array("position", answer.position, shape, words),
        None if balance is None else float(balance),
        None if z is None else float(z),
        None if choice is None else choice.astype(int),
        {
            name: array(f"gradients.{name}", value, shape, words)
            for name, value in answer.gradients.items()
            if value is not None
        },
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
    part: str,
    answers: Sequence[tuple[Case, Answer, str]],
    routing: dict[str, Readings],
    declared: Sequence[str] = (),
) -> list[Readings]:
    """The readings that explain each answer, `UNEXPLAINED` where none does.

    Args:
      part: of the answers, which is not that of the case in any of them.
      answers: (case, answer, anything).
      routing: case -> what explains its routing, on which the balance loss may hang.
      declared: names of readings that are tried before others.
    """
    votes: collections.Counter[Readings] = collections.Counter()
    found: list[Readings] = []
    failures = 0
    trials = [_Trial(case, answer, part, routing.get(case.name, ())) for case, answer, _ in answers]
    for tried in trials:
        case = tried.case
        own = [*_sets(part, case, 0), *_declared(part, case, declared)]
        usual = [readings for readings, _ in votes.most_common()]
        why = next(filter(tried, itertools.chain(own, usual, _sets(part, case, 1))), None)
        if why is None:
            why = next(filter(tried, _with_one(part, case, own)), None)
        if why is None and failures < _SEARCHED and not tried.broken:
            more = itertools.chain(_sets(part, case, 2), _sets(part, case, 3))
            why = next(filter(tried, more), None)
            failures += why is None
        if why is not None:
            votes[why] += 1
        found.append(why if why is not None else (UNEXPLAINED,))
    # What was found first need not be what explains most.
    covers = {readings: sum(tried(readings) for tried in trials) for readings in votes}
    order = sorted(votes, key=lambda readings: (-covers[readings], len(readings)))
    for number, tried in enumerate(trials):
        own = [*_sets(part, tried.case, 0), *_declared(part, tried.case, declared)]
        found[number] = tried.marked(next(filter(tried, [*own, *order]), found[number]))
    return found


def _declared(part: str, case: Case, names: Sequence[str]) -> Iterator[Readings]:
    """Sets of declared readings, few before many."""
    for size in range(1, len(names) + 1):
        for readings in _sets(part, case, size):
            if all(reading.name in names for reading in readings):
                yield readings


def _with_one(part: str, case: Case, sets: Sequence[Readings]) -> Iterator[Readings]:
    """Each of the sets with one reading more."""
    for readings in sets:
        for (one,) in _sets(part, case, 1):
            if not {key for r in readings for key in r.changes} & set(one.changes):
                yield (*readings, one)


def _sets(part: str, case: Case, size: int) -> Iterator[Readings]:
    """Sets of so many readings that change something, and not the same thing twice."""
    several = [r for r in READINGS if r.part == part and r.applies(case.settings, case.layers)]
    for readings in itertools.combinations(several, size):
        keys = [key for reading in readings for key in reading.changes]
        if len(set(keys)) == len(keys):
            yield readings


class _Trial:
    """Whether readings explain an answer: called with them."""

    def __init__(self, case: Case, answer: Answer, part: str, routing: Readings):
        self.case, self.answer, self.part = case, answer, part
        self._known: dict[Readings, bool] = {}
        base = tuple(r for r in routing if r.kind != BUG and r.changes)
        self.bases: list[Readings] = [(), base] if part == "balance" and base else [()]
        values = np.sort(case.logits, axis=-1)
        self.tied = bool(np.any(np.diff(values, axis=-1) == 0))
        self.finite = bool(np.isfinite(case.logits).all())
        figures = _figures(answer, case.expected, part)
        self.broken = not all(np.isfinite(got).all() for _, got, _ in figures)

    def __call__(self, readings: Readings) -> bool:
        if readings not in self._known:
            orders = (self._order((*readings, *base)) for base in self.bases)
            self._known[readings] = any(order is not None for order in orders)
        return self._known[readings]

    def marked(self, readings: Readings) -> Readings:
        """Those of the readings that this case needs, with what else it needs: readings of its
        routing, or that ties go otherwise.
        """
        if readings == (UNEXPLAINED,):
            if not self.finite:
                return (NOT_FINITE,)
            return (NO_TOKENS,) if self.broken and not self.case.mask.any() else readings
        why = next(
            (*readings, *base) for base in self.bases if self._order((*readings, *base)) is not None
        )
        for reading in why:
            less = tuple(r for r in why if r is not reading)
            if self._order(less) is not None:
                why = less
        return (*why, TIES) if self._order(why) else why

    def _order(self, readings: Readings) -> int | None:
        """The number of the order of ties under which readings explain the answer, or None."""
        changes = {key: value for r in readings for key, value in r.changes.items()}
        asked = rules(self.case.settings, **changes)
        for number, order in enumerate(self.orders):
            want = self._reference(asked, order)
            if not difference(self.case, self.answer, want, self.part):
                return number
        return None

    def _reference(self, asked: Rules, order: np.ndarray) -> Answer:
        case = self.case
        if case.layers > 1:
            return reference.answer_of_layers(case.logits, case.mask, case.draws, asked)
        logits = case.logits + order
        return reference.answer(logits, case.mask, case.draws, asked, (self.part,), case.bias)

    @functools.cached_property
    def orders(self) -> list[np.ndarray]:
        """What is added to logits to decide ties: nothing, so that the first expert goes first; as
        the answer says or shows it, then the first or the last.
        """
        shape = self.case.logits.shape
        if not self.tied:
            return [np.zeros(shape)]
        combine, choice = self.answer.combine, self.answer.choice
        shown = np.zeros(shape) if combine is None else 1e-9 * (combine != 0) + 1e-9 * combine
        if choice is not None:
            shown = np.zeros(shape)
            for k in range(choice.shape[-1]):
                np.put_along_axis(shown, choice[..., k : k + 1], 1e-9 * (9 - k), axis=-1)
        last = np.broadcast_to(1e-10 * np.arange(shape[-1]), shape)
        return [np.zeros(shape), shown, shown + last, last]
