"""Tables and figures of papers as data: what makes one, and how cells are read."""

import pytest

from trainlib.papers.exhibit import Exhibit, Paper, by_name, number, rows_of

PAPER = Paper("aa", "1904.09925", "Attention")
ROWS = rows_of(
    """
    one | 1.0 | 4/6
    two | -   |
    """
)


def exhibit(**more):
    values = {"columns": ("first", "second"), "rows": ROWS, "origin": "read"}
    return Exhibit(PAPER, "table", 3, "A table", **(values | more))


def test_cells_stay_as_they_are_written():
    table = exhibit()
    assert table.rows == (("one", ("1.0", "4/6")), ("two", ("-", "")))
    assert table.cells("one") == {"first": "1.0", "second": "4/6"}
    assert (table.name, table.source) == ("table 3", "arXiv 1904.09925 table 3")
    assert by_name([table]) == {("aa", "table 3"): table}
    facts = table.facts()
    assert facts["rows"]["two"] == {"first": "-", "second": ""}
    assert (facts["arxiv"], facts["number"]) == ("1904.09925", 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"columns": ("first",)}, "not 1 cells in"),
        ({"rows": (*ROWS, ROWS[0])}, "rows of the same name"),
        ({"rows": (), "origin": ""}, "no rows, and no reason"),
        ({"origin": ""}, "cells and their origin belong together"),
    ],
)
def test_what_says_nothing_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        exhibit(**wrong)


def test_an_exhibit_is_a_table_or_a_figure():
    with pytest.raises(ValueError, match="neither of"):
        Exhibit(PAPER, "plot", 1, "A plot", absent="a picture")


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("-1.755 +- 0.02", -1.755),
        ("2.447 (+7%)", 2.447),
        ("10.6%", 10.6),
        ("2.34e-7", 2.34e-7),
        ("4/6", None),
        ("yes", None),
        ("", None),
    ],
)
def test_the_number_of_a_cell(cell, value):
    assert number(cell) == value
