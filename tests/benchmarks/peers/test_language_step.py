"""The row of the Switch step: what it counts, and that both sides agree at a tiny size."""

from __future__ import annotations

import math

import pytest

from benchmarks.peers import language_step

TINY = {"batch": 2, "encoder": 16, "decoder": 8}


def test_bare_products_are_those_of_a_step(monkeypatch):
    """One dense encoder block and one sparse one: by hand, in multiply-adds of a forward pass."""
    monkeypatch.setitem(language_step.MODEL, "encoder_blocks", 2)
    monkeypatch.setitem(language_step.MODEL, "decoder_blocks", 0)
    counted = sum(
        count * math.prod(left) * right[-1] for count, left, right in language_step.products(TINY)
    )
    tokens, d, f, experts = 32, 128, 256, 4
    attention = 2 * (4 * tokens * d * d + 2 * tokens * 16 * d)
    feed_forward = 2 * 2 * tokens * d * f + tokens * d * experts
    head = 2 * 8 * d * 512
    assert counted == attention + feed_forward + head


@pytest.mark.slow
def test_both_sides_compute_the_same(monkeypatch):
    pytest.importorskip("torch", reason="the peer needs torch")
    pytest.importorskip("transformers", reason="the peer is transformers")
    for stack in ("encoder", "decoder"):
        monkeypatch.setitem(language_step.MODEL, f"{stack}_blocks", 2)
    assert "gradients differ by at most" in language_step.check(TINY, language_step.batch_of(TINY))
