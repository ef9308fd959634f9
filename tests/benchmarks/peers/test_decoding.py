"""The rows of decoding run to their end with models of no size, and both sides agree."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="the peer")
pytest.importorskip("transformers", reason="the peer")


@pytest.mark.slow
@pytest.mark.parametrize("row", ["decoding", "first_decoding"])
def test_both_sides_find_the_same(row):
    command = [sys.executable, "-m", f"benchmarks.peers.{row}", "--tiny", "--length=4"]
    run = subprocess.run([*command, "--rounds=1"], capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    said = [line for line in run.stdout.splitlines() if line.startswith("RATIOS ")]
    assert said, run.stdout + run.stderr
    assert all(row["ratio"] for row in json.loads(said[0].removeprefix("RATIOS "))["rows"])
