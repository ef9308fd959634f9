"""What T5 attention takes on a TPU, by the account of its compiler; nothing is run."""

from __future__ import annotations

import pytest

from benchmarks.attention.measure import measure
from benchmarks.attention.t5 import CASES
from tests.tpu_compiler import needs_figures

KNOWN = {case.path: case for case in CASES}


def check(path: str, target: str, most: float) -> None:
    """At most so many milliseconds, bytes over the least and temporaries as the goals say."""
    row = measure(KNOWN[path], target)
    assert row.milliseconds <= most, row.milliseconds
    # Each pass reads queries, keys and values: 12 arrays where 8 are counted.
    assert row.bytes_over_least <= 1.52
    assert row.temporaries_over_outputs <= 0.5
    assert row.compile_seconds <= 20


@needs_figures
@pytest.mark.thorough
def test_512_tokens_with_segments():
    check("t5/self_512", "v5e-1", 0.30)


@needs_figures
@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "target", "most"),
    [
        ("t5/self_2048", "v5e-1", 2.95),
        ("t5/self_2048", "v6e-1", 2.0),
        ("t5/self_512", "v6e-1", 0.25),
    ],
)
def test_other_lengths_and_chips(path, target, most):
    check(path, target, most)
