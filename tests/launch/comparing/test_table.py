"""Tables of one to twelve runs, on terminals of any width."""

import re

import pytest

from launch.comparing import runs, table
from launch.report import report
from tests.launch.comparing.fixtures import make


def test_a_column_a_run_where_it_fits(tmp_path):
    found = [
        runs.read(make(tmp_path / "slow", loss=2.0, rate=0.1), report),
        runs.read(make(tmp_path / "quick", done=20, loss=1.0, rate=0.25), report),
    ]
    lines = table.text(found, 80).splitlines()
    split = [re.split("  +", line) for line in lines]
    cells = {first: rest for first, *rest in split}
    assert lines[1].split() == ["slow", "quick"]
    assert cells["state"] == ["complete", "stopped"]
    assert cells["step"] == ["30/30", "20/30"]
    assert cells["loss, train"] == ["2.033", "1.05"]
    assert cells["top1, last"] == ["0.6", "0.8"]
    assert cells["top1, best"] == ["0.7 @20", "0.8 @20*"]
    assert cells["examples/s"] == ["2,000", "1,000"]
    assert cells["rate"] == ["0.1", "0.25"]
    assert "router" not in "\n".join(lines)
    assert "seed" not in cells


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("count", [2, 12])
def test_lines_fit_the_terminal(tmp_path, count, width):
    long = f"folder:/{'deep/' * 30}pictures"
    given = [
        make(tmp_path / f"a_run_with_a_long_name_{n:02}", rate=n, **{"data.source": long * n})
        for n in range(count)
    ]
    found = [runs.read(workdir, report) for workdir in given]
    lines = table.text(found, width).splitlines()
    wide = [line for line in lines if len(line) > width]
    assert not wide or width == 40  # one cell beside its label may be as wide as that
    assert all(len(line) <= 50 for line in wide)
    text = "\n".join(lines)
    for n in range(count):
        assert f"{n:02}" in text
    assert text.count("top1, best") == 1


def test_names_of_others_steer_no_terminal(tmp_path):
    found = [
        runs.read(make(tmp_path / name, name=f"\x1b[2J{name}", rate=f"{name}\n\u202e"), report)
        for name in ("a\x1b[31m", "b")
    ]
    text = table.text(found, 80)
    assert not [letter for letter in text if letter != "\n" and not letter.isprintable()]


def test_what_cannot_be_read_is_said_below(tmp_path):
    (make(tmp_path / "b") / "config.json").write_text("{broken")
    found = [runs.read(path, report) for path in (make(tmp_path / "a"), tmp_path / "b")]
    text = table.text(found, 80)
    assert "unreadable" in text
    assert text.splitlines()[-1].startswith("b: ")
