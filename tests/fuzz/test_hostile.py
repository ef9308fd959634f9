"""Crafted files: each is refused with exit 66, quickly, in bounded memory, and writes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.fuzz import hostile
from tests.launch.commands import ROOT, environment

GROWTH = 200  # MB, of all cases together


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    canary = root / "canary"
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.hostile", str(root / "work")],
        cwd=ROOT,
        env=environment(root / "cache", CANARY=str(canary)),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not canary.exists(), "a pickle was opened"
    assert sorted(os.listdir(root)) in (["cache", "work"], ["work"])
    return json.loads(done.stdout)


def test_there_are_enough_of_them():
    assert len(hostile.CASES) >= 60


@pytest.mark.slow
def test_what_was_not_damaged_is_taken(results):
    assert results["good"]["code"] == 0, results["good"]


@pytest.mark.parametrize("name", list(hostile.CASES))
def test_it_is_refused(results, name):
    found = results[name]
    assert found["code"] == 66, found
    assert found["written"] == []
    assert found["seconds"] < 5, found
    assert len(found["text"]) < 2000


def test_memory_is_bounded(results):
    grew = {name: round(found["grew"]) for name, found in results.items() if name != "good"}
    assert sum(grew.values()) < GROWTH, {n: mb for n, mb in grew.items() if mb > 5}
