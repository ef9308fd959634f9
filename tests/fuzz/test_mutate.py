"""The short form of `make fuzz`, for `make soak`."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest

from tests.fuzz import mutate
from tests.launch.commands import ROOT, environment


@pytest.mark.slow
def test_some_hundred_mutations(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.mutate", "--count=600", "--seed=1"],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused, read = (
        int(n)
        for n in re.match(
            r"600 mutations: (\d+) refused, (\d+) read, .* 0 silent", done.stdout
        ).groups()
    )
    # Both ends are exercised: most damage is seen; other numbers in place of weights are not.
    assert refused > 200
    assert read > 50


def test_mutations_change_the_file_and_repeat():
    data = bytes(range(48, 112)) * 4
    made = [mutate.mutated(data, random.Random(n)) for n in range(50)]
    assert made == [mutate.mutated(data, random.Random(n)) for n in range(50)]
    assert sum(one != data for one in made) > 45
