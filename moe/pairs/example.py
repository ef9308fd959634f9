"""One row of pairs as an example: which task it is of, its input, and what is right."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from numbers import Integral
from typing import Any

from moe.tasks.task import UNKNOWN_LABEL, Bad, TextExample, words
from trainlib.keys import brief

TASK = "pairs"  # the task of rows that name none
MOST_CHOICES = 1000
_NAME = re.compile(r"[^\W_][\w.-]{0,63}")  # it becomes the name of a figure and of a file


def task_of(row: Mapping[str, Any]) -> str:
    """The name in the field `task` of a row, or `pairs`.

    Raises:
      Bad: it is no name.
    """
    name = row.get("task")
    if name is None:
        return TASK
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Bad(
            f"has {brief(name, 80)} in the field 'task', where a name is needed: 1 to 64 letters, "
            "digits, '_', '-' and '.', the first a letter or digit"
        )
    return name


def example_of(row: Mapping[str, Any], number: int) -> TextExample:
    """The example of a row; without `targets` it is one whose answer is not known.

    Args:
      row: `inputs`, text; `targets`, a text or number or a list of these, all of them right;
        optionally `choices`, a list of such with the one target among them.
      number: of the row, its key.

    Raises:
      Bad: a field is absent, empty or of another type, or the target is none of the choices.
    """
    inputs = words(row, "inputs")["inputs"]
    given = row.get("targets")
    listed = given if isinstance(given, list) else [given]
    absent = given is None or given == ""
    targets: tuple[str, ...] = (
        () if absent else tuple(dict.fromkeys(_answer(one, "targets") for one in listed))
    )
    if not absent and not targets:
        raise Bad("has an empty list in the field 'targets'")
    choices = _choices(row.get("choices"))
    label = UNKNOWN_LABEL
    if choices and targets:
        right, *others = targets
        if others:
            raise Bad(f"has {len(targets)} targets and choices: one of the choices is right")
        if right not in choices:
            raise Bad(f"has the target {brief(right, 80)}, which is none of its choices")
        label = choices.index(right)
    return TextExample(inputs, targets, (number,), label, choices, answers=targets)


def _choices(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or not 2 <= len(given) <= MOST_CHOICES:
        raise Bad(
            f"has {brief(given, 80)} in the field 'choices', where a list of 2 to {MOST_CHOICES:,} "
            "texts is needed (in CSV as JSON)"
        )
    choices = tuple(_answer(one, "choices") for one in given)
    if len(set(choices)) < len(choices):
        raise Bad(f"has the same choice twice: {brief(list(choices), 80)}")
    return choices


def _answer(value: Any, field: str) -> str:
    """A text without the blanks around it, which no answer is compared with, or a number as it is
    written.

    Raises:
      Bad: it is neither, or empty.
    """
    if isinstance(value, str):
        if not value.strip():
            raise Bad(f"has an empty text in the field '{field}'")
        return value.strip()
    numeric = isinstance(value, Integral | float | Decimal) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value):
        hint = ': write it as text, "true"' if isinstance(value, bool) else ""
        raise Bad(
            f"has {brief(value, 80)} in the field '{field}', where text or a number is needed{hint}"
        )
    return str(value)
