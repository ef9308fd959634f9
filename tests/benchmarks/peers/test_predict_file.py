"""The row of files of mixed lengths at a tiny size: both sides give the same words."""

from __future__ import annotations

import pytest

from benchmarks.harness import timing
from benchmarks.peers import predict_file


@pytest.mark.thorough
def test_the_row_compares_and_reports(monkeypatch, capsys):
    monkeypatch.setattr(timing, "pin_one_thread", lambda: None)
    monkeypatch.setattr(predict_file, "SIZES", predict_file.SIZES | {"d_model": 16, "d_ff": 16})
    sizes = ["--lines=9", "--rows=4", "--encoder=40", "--decoder=6", "--blocks=1", "--rounds=1"]
    assert predict_file.main(sizes) in (0, 1)
    said = capsys.readouterr().out
    assert "words    equal" in said
    assert "ratio rows / file order" in said
