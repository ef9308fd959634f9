"""The tiers of the suite: which cases of a test are slow, what each tier costs, as measured, and
how that is said when one starts.

The default tier and the thorough one decide what lands, so both together have to end within a
quarter of an hour on two cores; a test beyond that is slow, and run by night. Where single cases
are cheap and many of them are dear, `@pytest.mark.sample(3)` leaves three of them, evenly spaced,
in the tier of the test and makes the others slow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import pytest


class Cost(NamedTuple):
    tier: str
    cpu_minutes: int  # user and system, of all processes
    minutes: int  # on two cores that do nothing else, in two processes


# By the expression that selects the tier; measured on two cores of an EPYC of 2024.
COSTS = {
    "not slow and not thorough": Cost("the default tier", 17, 10),
    "not slow": Cost("the default and the thorough tier", 35, 20),
}


def spread(count: int, of: int) -> list[int]:
    """Indices of `count` of `of` cases, evenly spaced, the first among them."""
    return [of * n // count for n in range(min(count, of))] if count < of else list(range(of))


def sample(items: Sequence[pytest.Item]) -> None:
    """Marks those cases of a test as slow that `@pytest.mark.sample(COUNT)` leaves out."""
    cases = defaultdict(list)
    for item in items:
        if (mark := item.get_closest_marker("sample")) is not None:
            cases[item.nodeid.partition("[")[0], mark.args[0]].append(item)
    for (_, count), of_one in cases.items():
        kept = set(spread(count, len(of_one)))
        for number, item in enumerate(of_one):
            if number not in kept:
                item.add_marker(pytest.mark.slow)


class Announcement:
    """Prints one line before the first test, where a whole tier is run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._said = config, False

    @pytest.hookimpl(optionalhook=True)  # where pytest-xdist is installed
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        """Only the process that starts the others calls this, once for each of them."""
        self._say(len(ids))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._say(len(session.items))

    def _say(self, count: int) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if not self._said and terminal is not None:
            self._said = True
            if line := announcement(self._config, count):
                terminal.write_line(line)


def announcement(config: pytest.Config, count: int) -> str:
    """The line, or "" for a selection of files or names, whose cost nobody has measured."""
    cost = COSTS.get(config.option.markexpr)
    whole = config.args_source is not config.ArgsSource.ARGS and not config.option.keyword
    if cost is None or not whole:
        return ""
    return (
        f"{count:,} tests, {cost.tier}: about {cost.cpu_minutes} CPU minutes, "
        f"{cost.minutes} minutes on two idle cores."
    )
