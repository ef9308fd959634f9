"""FLOPs, against what the compiler says of programs of several kinds, and by hand."""

from __future__ import annotations

import pytest

from tests.trainlib.planning.ledger.programs import PROGRAMS, costs, recorded
from trainlib.planning.hlo import Program
from trainlib.planning.ledger.arithmetic import Arithmetic


@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - {"scan"}))
def test_totals_are_those_of_the_compiler(name):
    assert recorded(name).flops == pytest.approx(costs()[name]["flops"], rel=1e-3)


def test_a_loop_counts_its_trips():
    """The compiler's own figure has one step of the 8; the products are all of it."""
    assert recorded("scan").flops == pytest.approx(8 * 2 * 2048 * 1024 * 1024, rel=1e-3)


def line(text):
    body = f"HloModule m\n\nENTRY %main (a: f32[1]) -> f32[1] {{\n  {text}\n}}\n"
    return Program(body, {})


OPERANDS = (
    "%a = bf16[2,{h},16]{{2,1,0}} parameter(0)\n  %b = bf16[{k},16,32]{{2,1,0}} parameter(1)\n  "
)


@pytest.mark.parametrize(
    ("height", "taps", "window", "out", "pairs"),
    [
        # Outputs and taps that meet an element, counted by hand along the one axis.
        (10, 3, "size=3 pad=1_1", 10, 28),
        (10, 3, "size=3", 8, 24),
        (10, 3, "size=3 stride=2 pad=0_1", 5, 14),
        (10, 3, "size=3 pad=2_2 rhs_dilate=2", 10, 26),
        (5, 3, "size=3 pad=1_1 lhs_dilate=2", 9, 13),
        # A matrix product batched 8 times, as XLA writes it: every output meets its own tap.
        (8, 8, "size=8 stride=7 pad=0_0 lhs_dilate=8", 8, 8),
    ],
)
def test_taps_on_padding_and_between_elements_do_not_count(height, taps, window, out, pairs):
    program = line(
        OPERANDS.format(h=height, k=taps)
        + f"ROOT %c = bf16[2,{out},32]{{2,1,0}} convolution(%a, %b), "
        f"window={{{window}}}, dim_labels=b0f_0io->b0f"
    )
    convolution = program.by_name["main"]["c"]
    assert Arithmetic(program).flops(convolution, "main") == 2 * 2 * 16 * 32 * pairs


def test_a_product_counts_its_contracted_dimensions():
    program = line(
        "%a = bf16[4,8,16]{2,1,0} parameter(0)\n  %b = bf16[4,16,32]{2,1,0} parameter(1)\n  "
        "ROOT %d = bf16[4,8,32]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, "
        "lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"
    )
    assert Arithmetic(program).flops(program.by_name["main"]["d"], "main") == 2 * 4 * 8 * 16 * 32
