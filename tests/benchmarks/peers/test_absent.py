"""A row whose peer is not installed says so before it measures anything."""

from __future__ import annotations

import importlib
import sys

import pytest

from benchmarks.harness import timing


@pytest.mark.parametrize(
    ("row", "peer"),
    {
        "checkpoint": "safetensors",
        "decoding": "transformers",
        "first_decoding": "transformers",
        "language_step": "torch",
        "sparse_decoding": "torch",
        "sparse_layer": "st_moe_pytorch",
        "vision_attention_step": "timm",
        "vision_step": "timm",
    }.items(),
)
def test_it_names_the_peer_and_what_installs_it(row, peer, monkeypatch):
    monkeypatch.setattr(sys, "argv", [row])
    monkeypatch.setattr(
        timing.importlib.util, "find_spec", lambda name: None if name == peer else object()
    )
    monkeypatch.setattr(timing, "pin_one_thread", lambda **_: pytest.fail("it went on"))
    monkeypatch.setattr(timing, "header", lambda *_: pytest.fail("it went on"))
    main = importlib.import_module(f"benchmarks.peers.{row}").main
    with pytest.raises(SystemExit, match=rf"not installed: {peer}\. .*\[bench\]"):
        main()
