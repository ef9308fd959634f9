"""The row of checkpoints at its smallest: what it prints, and that it checks bits."""

import json

import pytest

from benchmarks.peers import checkpoint


@pytest.mark.thorough
def test_both_sides_restore_the_same_bits_and_every_ratio_is_told(tmp_path, capsys):
    checkpoint.compared(1, 1, tmp_path)
    said = capsys.readouterr().out
    assert "both restore the same bits" in said
    marked = [line for line in said.splitlines() if line.startswith("RATIOS ")]
    rows = [row for line in marked for row in json.loads(line.removeprefix("RATIOS "))["rows"]]
    assert [(row["ours"], row["peer"]) for row in rows] == [
        *4 * [("ours", "Orbax")],
        ("digest", "save"),
    ]
    assert all(row["ratio"] > 0 for row in rows)
