"""Regular expressions of configurations, searched in time that no pattern can stretch.

Python's own search goes back: `(a+)+$` takes 2^n steps on n characters that do not match, and a
configuration may come from anyone. Here all ways through a pattern are followed at once, character
by character (Thompson 1968), which costs at most the size of the pattern for each character.
Letters, classes, anchors and word edges are judged by Python itself; what goes beyond "found or
not" (references to groups, possessive repeats) and what grows without measure is refused.

A program is a list of instructions. `one` takes a character and goes to the next instruction,
`at` takes none and holds or not, `fork` goes to several, `look` asks whether another program
matches here, `end` is a match.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Iterable
from re import _compiler, _parser  # pyright: ignore[reportAttributeAccessIssue]
from re import _constants as ops  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

from trainlib.errors import ConfigError
from trainlib.keys import Kind, Text, Unfit, brief, fit, many

MOST = 500  # characters of a pattern
MOST_LISTED = 2_000  # patterns of one key; some are written out, one for each of many weights
LARGEST = 1_000  # instructions of its program, when {2,9} is written out
BUDGET = 10_000_000  # instructions followed for all patterns of a key in all names: seconds
BUILDING = 20  # what writing one instruction costs, in instructions followed

_REPEATS = (ops.MAX_REPEAT, ops.MIN_REPEAT)
_SINGLE = (ops.LITERAL, ops.NOT_LITERAL, ops.IN, ops.ANY)


@dataclasses.dataclass
class _Step:
    kind: str  # "one", "at", "fork", "look" or "end"
    holds: Any = None  # of "one" and "at": (text, position) -> whether it holds here
    to: list[int] = dataclasses.field(default_factory=list)
    look: _Look | None = None


@dataclasses.dataclass(frozen=True)
class _Look:
    """A look ahead of or behind a position; what is behind has one length."""

    start: int
    end: int
    behind: int | None
    wanted: bool


class Pattern:
    """A regular expression that can be searched in names.

    Args:
      text: the pattern, in the syntax of `re`.

    Raises:
      Unfit: it is no regular expression, or one that is not searched here; says why.
    """

    def __init__(self, text: str):
        self._tree = tree = _parsed(text)
        self._steps: list[_Step] = []
        self._judges: dict[int, Any] = {}
        self._start = self._end = -1
        # Without a choice there is nothing to go back to: Python's search is as quick as can be.
        self._plain = None if _chooses(tree) else re.compile(text)
        if not self._plain and _size(tree) > LARGEST:
            raise Unfit("it is too large when its repeats are written out")

    def matches(self, name: str, budget: list[int]) -> bool:
        """Whether the pattern matches anywhere in the name.

        Args:
          name: text to search.
          budget: instructions that may still be followed; what is used is taken off.

        Raises:
          Unfit: the budget is used up.
        """
        if self._plain:
            return self._plain.search(name) is not None
        if not self._steps:
            self._end = self._add(_Step("end"))
            self._start = self._sequence(self._tree, self._end)
            budget[0] -= BUILDING * len(self._steps)
        return self._run(name, self._start, self._end, 0, None, {}, budget, anywhere=True)

    # The program, built from its end: each piece knows where to go on.

    def _add(self, step: _Step) -> int:
        self._steps.append(step)
        return len(self._steps) - 1

    def _sequence(self, tree: Any, then: int) -> int:
        for item in reversed(list(tree)):
            then = self._item(item, then)
        return then

    def _item(self, item: tuple, then: int) -> int:
        op, argument = item
        if op in _SINGLE or op is ops.AT:
            return self._add(_Step("at" if op is ops.AT else "one", self._judge(item), [then]))
        if op is ops.BRANCH:
            return self._add(_Step("fork", to=[self._sequence(way, then) for way in argument[1]]))
        if op is ops.SUBPATTERN:
            return self._sequence(argument[3], then)
        if op in _REPEATS:
            least, most, tree = argument
            return self._repeat(least, most, tree, then)
        direction, tree = argument
        end = self._add(_Step("end"))
        behind = tree.getwidth()[0] if direction < 0 else None
        look = _Look(self._sequence(tree, end), end, behind, op is ops.ASSERT)
        return self._add(_Step("look", to=[then], look=look))

    def _repeat(self, least: int, most: int, tree: Any, then: int) -> int:
        if most == ops.MAXREPEAT:
            again = self._add(_Step("fork"))
            self._steps[again].to = [self._sequence(tree, again), then]
            then = again
        else:
            out = then
            for _ in range(most - least):
                then = self._add(_Step("fork", to=[self._sequence(tree, then), out]))
        for _ in range(least):
            then = self._sequence(tree, then)
        return then

    def _judge(self, item: tuple) -> Any:
        """Python's own answer whether a single character or an anchor holds at a position."""
        if id(item) not in self._judges:
            state = self._tree.state
            judge = _compiler.compile(_parser.SubPattern(state, [item]), state.flags)
            self._judges[id(item)] = judge.match
        return self._judges[id(item)]

    # Its run: the set of instructions that are reached at each position.

    def _run(
        self,
        name: str,
        start: int,
        end: int,
        position: int,
        stop: int | None,
        seen: dict,
        budget: list[int],
        *,
        anywhere: bool = False,
    ) -> bool:
        """Whether the program from `start` reaches `end`, at position `stop` if that is given."""
        reached = {start}
        while reached:
            closed = self._closed(name, reached, position, seen, budget)
            if end in closed and stop in (None, position):
                return True
            if position == len(name):
                return False
            ones = (self._steps[number] for number in closed)
            reached = {
                step.to[0] for step in ones if step.kind == "one" and step.holds(name, position)
            }
            position += 1
            if anywhere:
                reached.add(start)
        return False

    def _closed(
        self, name: str, reached: set[int], position: int, seen: dict, budget: list[int]
    ) -> set[int]:
        """All instructions that are reached without taking a character."""
        closed, open_ends = set(reached), list(reached)
        while open_ends:
            step = self._steps[open_ends.pop()]
            if step.kind in ("one", "end") or not self._holds(name, step, position, seen, budget):
                continue
            new = [number for number in step.to if number not in closed]
            closed.update(new)
            open_ends += new
        budget[0] -= len(closed)
        if budget[0] < 0:
            raise Unfit("it takes too many steps on these names; write it more simply")
        return closed

    def _holds(self, name: str, step: _Step, position: int, seen: dict, budget: list[int]) -> bool:
        if step.kind == "fork":
            return True
        look = step.look
        if look is None:
            return step.holds(name, position) is not None
        if (look, position) not in seen:
            begin = position - (look.behind or 0)
            stop = None if look.behind is None else position
            matches = begin >= 0 and self._run(
                name, look.start, look.end, begin, stop, seen, budget
            )
            seen[look, position] = matches == look.wanted
        return seen[look, position]


def _parsed(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "possible nested set": it means what it means today
            tree = _parser.parse(text)
            re.compile(text)  # finds what parsing alone does not, a look behind of two lengths
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise Unfit(f"it is not a regular expression ({error})") from None
    _check(tree)
    return tree


_SEARCHED = (*_SINGLE, *_REPEATS, ops.AT, ops.BRANCH, ops.SUBPATTERN, ops.ASSERT, ops.ASSERT_NOT)
_OTHERS = {
    ops.GROUPREF: "a reference to a group",
    ops.GROUPREF_EXISTS: "a condition on a group",
}


def _children(item: tuple) -> list:
    op, argument = item
    if op is ops.BRANCH:
        return list(argument[1])
    if op in _REPEATS:
        return [argument[2]]
    if op is ops.SUBPATTERN:
        return [argument[3]]
    return [argument[1]] if op in (ops.ASSERT, ops.ASSERT_NOT) else []


def _check(tree: Any) -> None:
    for item in tree:
        if item[0] not in _SEARCHED:
            what = _OTHERS.get(item[0], "an atomic group or a possessive repeat")
            raise Unfit(f"it holds {what}, which is not searched here")
        if item[0] is ops.SUBPATTERN and (item[1][1] or item[1][2]):
            raise Unfit("it sets flags for a part of it; set them for the whole, (?i)...")
        for inner in _children(item):
            _check(inner)


def _chooses(tree: Any) -> bool:
    """Whether there is more than one way through it."""
    choosing = (*_REPEATS, ops.BRANCH, ops.ASSERT, ops.ASSERT_NOT)
    return any(i[0] in choosing or any(map(_chooses, _children(i))) for i in tree)


def _size(tree: Any) -> int:
    """Instructions of its program, found without writing it."""
    total = 0
    for item in tree:
        inner = sum(_size(child) for child in _children(item))
        times = 1
        if item[0] in _REPEATS:
            least, most = item[1][0], item[1][1]
            times = least + 1 if most == ops.MAXREPEAT else most
        total += (inner + 2) * max(times, 1)
    return total


@functools.lru_cache(MOST_LISTED)
def compiled(text: str) -> Pattern:
    """The pattern of a text; see `Pattern`."""
    return Pattern(text)


def _accepts(text: str) -> None:
    compiled(text)


def pattern() -> Kind:
    """The kind of a key that holds a regular expression searched in names."""
    return Text(1, MOST, "a regular expression", _accepts)


def patterns() -> Kind:
    """The kind of a key that holds a list of them."""
    return many(pattern(), most=MOST_LISTED)


def matching(key: str, text: Any, names: Iterable[str], budget: list[int]) -> set[str]:
    """The names in which a regular expression is found.

    Args:
      key: the option to name in errors.
      text: the pattern.
      names: to search.
      budget: [`BUDGET`] of the key, shared by all its patterns; what is used is taken off.

    Raises:
      ConfigError: it is none, or one that cannot be searched here.
    """
    fit(key, text, pattern())
    program = compiled(text)
    try:
        return {name for name in names if program.matches(name, budget)}
    except Unfit as refused:
        raise ConfigError(f"{key}: the pattern {brief(text)} cannot be used: {refused}.") from None
