"""The row of sparse layers at a small size: both sides compute the same, and it runs."""

import pytest

from benchmarks.harness import timing

pytest.importorskip("torch")
pytest.importorskip("st_moe_pytorch", reason="compares with the other library")


def test_the_row_compares_and_reports(monkeypatch, capsys):
    from benchmarks.peers import sparse_layer

    monkeypatch.setattr(timing, "pin_one_thread", lambda: None)
    sizes = ["--rounds", "1", "--tokens", "256", "--width", "16", "--hidden", "24"]
    assert sparse_layer.main(sizes) in (0, 1)
    said = capsys.readouterr().out
    assert said.count("the same output, losses and gradients") == 4
    assert "ratio ours E=8 / st-moe-pytorch E=8" in said


def test_a_difference_ends_the_row():
    import numpy as np

    from benchmarks.peers.sparse_layer import check

    with pytest.raises(SystemExit, match=r"up differs by 0\.1"):
        check("case", {"up": np.float32([1.1])}, {"up": np.float32([1.0])})
