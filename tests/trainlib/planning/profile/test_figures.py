"""Figures of a program by hand: what adds up, what is bound by what."""

from __future__ import annotations

import pytest

from tests.trainlib.planning.ledger.programs import recorded
from tests.trainlib.planning.profile.programs import CYCLES, EVIL, TEXT, N, profile
from trainlib.planning.profile import figures, headline, roofline
from trainlib.planning.profile.page import to_html
from trainlib.planning.profile.text import WIDTH, to_text

CLOCK, BANDWIDTH, PEAK = 1.5e9, 819e9, 197e12
ARRAY = 2 * N * N  # bytes
COPY = ARRAY / BANDWIDTH
TEST = 3 * 512 / BANDWIDTH  # the condition of the loop: two numbers and a truth value, a tile each


@pytest.fixture(scope="module")
def made():
    return profile()


def core():
    return (CYCLES["product"] + 3 * CYCLES["turn"] + CYCLES["pass"]) / CLOCK + 3 * TEST


def test_rows_and_waits_add_up_to_the_prediction(made):
    """The first copy runs beside the product; the second is waited for."""
    waits = dict(made.waits)
    assert waits == {"copies from and to HBM": pytest.approx(COPY)}
    assert made.seconds == pytest.approx(core() + COPY)
    for by in figures.GROUPINGS:
        rows = made.rows(by)
        assert sum(row.seconds for row in rows) == pytest.approx(core())
        assert sum(row.hbm_bytes for row in rows) == made.ledger.hbm_bytes
    assert sum(seconds for _, seconds in made.families) == pytest.approx(made.seconds)
    assert sum(seconds for _, seconds in made.phases) == pytest.approx(core())


def test_a_row_knows_its_turns_and_its_roofs(made):
    rows = {row.name: row for row in made.rows()}
    product, turn = rows["stem/conv1"], rows["deep/block/norm"]
    assert (turn.times, product.times) == (3, 1)
    assert turn.seconds == pytest.approx(3 * CYCLES["turn"] / CLOCK)
    assert turn.hbm_bytes == 3 * 3 * ARRAY  # two operands and a result
    assert product.of_peak == pytest.approx(2 * N**3 / PEAK / (CYCLES["product"] / CLOCK))
    assert (product.bound, product.family) == ("neither", "products")
    assert product.lost == pytest.approx(product.seconds - 2 * N**3 / PEAK)
    assert made.mfu == pytest.approx(2 * N**3 / PEAK / made.seconds)


def test_products_of_8_bit_integers_are_measured_by_their_own_peak():
    made = figures.Profile(recorded("matmul_int8"), figures.Subject("a product", "v5e-1"))
    (row,) = (row for row in made.rows() if row.flops)
    at_peak = row.flops / (2 * PEAK)
    assert row.of_peak == pytest.approx(at_peak / row.seconds)
    assert made.mfu == pytest.approx(at_peak / made.seconds)
    assert "394 TFLOP/s" in roofline.roofline(made)[0]


@pytest.mark.parametrize(
    ("peak", "bandwidth", "family", "expected"),
    [
        (0.9, 0.3, "products", "compute"),
        (0.2, 0.6, "elementwise", "memory"),
        (0.2, 0.1, "elementwise", "neither"),
        (0.0, 0.9, "collectives", "link"),
    ],
)
def test_the_nearest_roof_binds(peak, bandwidth, family, expected):
    assert figures.bound(peak, bandwidth, family) == expected


def test_layers_that_differ_in_numbers_are_one_row(made):
    names = {row.name for row in made.rows(alike=True)}
    assert "stem/conv*" in names
    with pytest.raises(ValueError, match="known: layer, op, source"):
        made.rows("colour")


def test_the_text_fits_a_terminal_and_steers_none(made):
    text = to_text(made)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "deep/block/norm x3" in text
    assert "(waiting for copies from and to HBM)" in text
    assert "nothing was run on a device" in text
    assert text.splitlines()[0].startswith("by hand on v5e-1: ")
    assert "1 more" in to_text(made, top=len(made.rows()) - 1)
    assert "\x1b" not in to_text(profile(name="\x1b[31mred"))


def test_the_dearest_comes_first(made):
    """The product loses most: nothing of it is explained by its arithmetic or its bytes."""
    first, *_ = headline.findings(made)
    assert first.startswith("stem/conv* takes 1 ms")
    assert EVIL not in to_text(made).replace("...", "") or len(EVIL) < 36


def test_what_the_figures_leave_out_is_in_the_text_and_in_the_page(made):
    """The loop without its number of turns: nothing counts them."""
    said = "the loop loop turns as often as data say; it is counted once"
    endless = profile(TEXT.replace("known_trip_count", "unknown"))
    assert said in " ".join(to_text(endless).split())
    assert said in to_html(endless)
    assert "leave something out" in to_html(endless)
    assert "leave" not in to_text(made)
    assert "leave something out" not in to_html(made)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0589, "58.9 ms"), (3.1, "3.1 s"), (8.7e-7, "870 ns"), (2.5e-5, "25 us"), (0.0, "0")],
)
def test_times_have_three_digits(value, shown):
    assert figures.time(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.134, "13 %"), (0.0042, "0.4 %"), (1e-5, "<0.1 %"), (0.0, "0 %")]
)
def test_shares(value, shown):
    assert figures.percent(value) == shown
