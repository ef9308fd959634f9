"""The row of attention networks at a small size: both sides compute the same, and it runs."""

import pytest

from benchmarks.harness import timing

pytest.importorskip("torch")


@pytest.mark.slow
def test_the_row_compares_and_reports(monkeypatch, capsys):
    from benchmarks.peers import vision_attention_step

    monkeypatch.setattr(timing, "pin_one_thread", lambda: None)
    sizes = ["--only", "AA", "--rounds", "1", "--batch", "2", "--pixels", "64", "--classes", "10"]
    monkeypatch.setattr("sys.argv", ["row", *sizes])
    assert vision_attention_step.main() in (0, 1)
    said = capsys.readouterr().out
    assert "gradients differ by" in said
    assert "ratio ours / torch materialised" in said


def test_a_peer_of_other_weights_is_refused():
    import numpy as np

    from benchmarks.harness import torch_resnet

    network = torch_resnet.ResNet((1, 1, 1, 1), 32, 10, torch_resnet.convolution)
    with pytest.raises(KeyError, match=r"head\.bias"):
        torch_resnet.load(network, {"head.kernel": np.zeros((2048, 10), np.float32)})
