"""The summary of a run as a file."""

import json
import math

from trainlib.run.summary import read_summary, save_summary


def test_a_summary_is_json_whatever_its_figures_are(tmp_path, capsys):
    """A run whose loss was no number has it in an alert."""
    alert = {"alert": "loss_spike", "value": math.nan, "bound": math.inf}
    save_summary(tmp_path, "st_moe_tiny: done", {"time": "1 s"}, {"step": 1, "alerts": [alert]})
    assert "st_moe_tiny: done" in capsys.readouterr().out

    def refused(name):
        raise AssertionError(f"{name} is no JSON")

    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refused)
    assert found["alerts"] == [{"alert": "loss_spike", "value": "NaN", "bound": "Infinity"}]
    assert read_summary(tmp_path) == found
