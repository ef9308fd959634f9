"""The suite itself: that processes agree on its tests, and what it says at its start."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tiers import COSTS, announcement, sample, spread

ROOT = Path(__file__).resolve().parents[1]


def collected(seed: int) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-m", "", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_no_name_of_a_test_depends_on_the_process_that_collects():
    """pytest-xdist refuses to start where two processes differ."""
    one, other = collected(1), collected(2)
    assert len(one) == len(set(one)) > 1000
    assert one == other


def chosen(expression, source=pytest.Config.ArgsSource.TESTPATHS, keyword=""):
    option = SimpleNamespace(markexpr=expression, keyword=keyword)
    return SimpleNamespace(option=option, args_source=source, ArgsSource=pytest.Config.ArgsSource)


@pytest.mark.parametrize("expression", COSTS)
def test_a_whole_tier_says_what_it_costs(expression):
    line = announcement(chosen(expression), 3789)
    assert line.startswith("3,789 tests, the default")
    assert f"about {COSTS[expression].cpu_minutes} CPU minutes" in line


def test_a_part_of_a_tier_promises_nothing():
    tier = next(iter(COSTS))
    for part in (
        chosen("slow"),
        chosen(tier, keyword="resume"),
        chosen(tier, pytest.Config.ArgsSource.ARGS),
    ):
        assert announcement(part, 3) == ""


def test_the_tiers_are_those_of_the_settings(pytestconfig):
    added = pytestconfig.getini("addopts")
    assert added[added.index("-m") + 1] == next(iter(COSTS))


@pytest.mark.parametrize(
    ("count", "of", "kept"),
    [(3, 9, [0, 3, 6]), (2, 5, [0, 2]), (1, 4, [0]), (4, 4, [0, 1, 2, 3]), (9, 2, [0, 1])],
)
def test_a_sample_is_evenly_spaced(count, of, kept):
    assert spread(count, of) == kept


class Case:
    """As much of a collected test as the sampling reads."""

    def __init__(self, test: str, number: int, count: int | None):
        self.nodeid, self.count, self.marks = f"{test}[{number}]", count, []

    def get_closest_marker(self, name):
        return None if self.count is None else pytest.mark.sample(self.count).mark

    def add_marker(self, mark):
        self.marks.append(mark.name)


def test_cases_beyond_a_sample_are_slow():
    cases = [Case(name, n, count) for n in range(6) for name, count in (("a", 2), ("b", None))]
    sample(cases)
    assert [case.nodeid for case in cases if case.marks == ["slow"]] == [
        f"a[{n}]" for n in (1, 2, 4, 5)
    ]
    assert all(case.marks in ([], ["slow"]) for case in cases)
