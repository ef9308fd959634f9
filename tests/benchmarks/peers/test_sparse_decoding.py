"""The row of decoding with experts at tiny sizes: both sides find the same, and ratios come out."""

import json
import sys

import pytest

from benchmarks.peers import sparse_decoding

pytest.importorskip("torch", reason="the peer needs torch")
pytest.importorskip("transformers", reason="the peer needs transformers")


@pytest.mark.thorough
def test_both_sides_agree_and_every_ratio_is_there(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["row", "--tiny", "--rounds", "1", "--length", "3"])
    monkeypatch.setattr(sparse_decoding.timing, "pin_one_thread", lambda: None)
    sparse_decoding.main()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("RATIOS ")]
    rows = [row for line in said for row in json.loads(line.removeprefix("RATIOS "))["rows"]]
    assert len(rows) == 12
    assert all(row["ratio"] > 0 for row in rows)
