"""The attention kernels, interpreted, against the plain form: values and every gradient."""

from __future__ import annotations

import pytest

from tests.moe.kernels.attention.cases import Arrays, Case, differs


@pytest.mark.parametrize(
    "case",
    [
        Case(300, 300, heads=2, batch=2),
        Case(300, 300, heads=2, width=64, causal=True, segments="padded"),
        Case(200, 300, bias=False, segments="packed", batch=2),
        Case(5, 1, heads=3, width=48, segments="none"),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_plain_form(case):
    for name, got, want in Arrays(case).compared():
        assert differs(got, want) <= 1e-5, name
