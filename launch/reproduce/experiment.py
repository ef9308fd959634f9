"""An experiment: a table or figure of a paper, and the configurations that reproduce it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from configs.common import load
from trainlib.papers.exhibit import Exhibit

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Values = Mapping[str, str]  # dotted key -> text, as after --config.
Rows = Mapping[str, "str | tuple[str, Values]"]  # row -> configuration, or that and keys of it
Cells = Mapping[str, Mapping[str, str]]  # row -> column -> text


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row at one scale: what is trained for it.

    Attributes:
      row: label of the row, of the exhibit where it has such a row.
      config: FILE[:VARIANT].
      values: single keys on top of it.
      start: whose weights the run starts from; None: from new ones.
    """

    row: str
    config: str
    values: Values = dataclasses.field(default_factory=dict)
    start: Setting | None = None

    def load(self, **more: str) -> ConfigDict:
        """The configuration; `more` are keys on top, with `__` for the dot."""
        added = {key.replace("__", "."): value for key, value in more.items()}
        return load.from_flags(self.config, {**self.values, **added}).config

    @property
    def flags(self) -> str:
        """The same as flags of `train`."""
        values = (f"--config.{key}={_quoted(value)}" for key, value in self.values.items())
        return " ".join((f"--config={self.config}", *values))


def _quoted(text: str) -> str:
    return f"'{text}'" if any(letter in text for letter in " ();&") else text


@dataclasses.dataclass(frozen=True)
class Measure:
    """A figure of a finished run.

    Attributes:
      title: heading, with its unit.
      of: a run's `Record` (`launch.reproduce.runs`) -> its figure; None where it has none.
      digits: after the point.
      count: the figure is 1 or 0, and that of several seeds how many of them had 1.
    """

    title: str
    of: Callable[[Any], float | None]
    digits: int = 2
    count: bool = False


@dataclasses.dataclass(frozen=True)
class Experiment:
    """How a table or figure is reproduced.

    Attributes:
      exhibit: what the paper prints.
      needs: data that the full scale reads, and who can have them.
      full: the rows at the paper's scale.
      tiny: the rows of a variant for a laptop; may be fewer.
      measures: what is read off its runs.
      tiny_is: what the tiny variant is, in words.
      minutes: CPU minutes of all its runs with one seed, about.
      compute: what is computed without training, row -> column -> text.
      computed_is: what that is, in words.
      done: what was run of it, and where that stands.
      note: what cannot be reproduced, and why.
    """

    exhibit: Exhibit
    needs: str = ""
    full: Sequence[Setting] = ()
    tiny: Sequence[Setting] = ()
    measures: Sequence[Measure] = ()
    tiny_is: str = ""
    minutes: float = 0.0
    compute: Callable[[], Cells] | None = None
    computed_is: str = ""
    done: str = ""
    note: str = ""

    @property
    def scales(self) -> tuple[str, ...]:
        """Those that there are."""
        tiny = bool(self.tiny or self.compute)
        return tuple(name for name, there in (("tiny", tiny), ("full", self.full)) if there)

    @property
    def key(self) -> tuple[str, str]:
        """Paper and name, such as ("st_moe", "table 5")."""
        return self.exhibit.paper.name, self.exhibit.name


def settings(rows: Rows, **values: str) -> list[Setting]:
    """Settings from row -> configuration, or (configuration, keys); `values` are keys of all, with
    `__` for the dot.
    """
    common = {key.replace("__", "."): value for key, value in values.items()}
    found = []
    for row, what in rows.items():
        config, own = (what, {}) if isinstance(what, str) else what
        found.append(Setting(row, config, {**common, **own}))
    return found
