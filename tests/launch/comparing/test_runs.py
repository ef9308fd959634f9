"""Which runs are meant, and in what they differ."""

import pytest

from launch.comparing import runs
from launch.report import report
from tests.launch.comparing.fixtures import make
from trainlib.errors import ConfigError


def test_directories_folders_of_runs_and_patterns(tmp_path):
    a, b = make(tmp_path / "sets" / "aa_1"), make(tmp_path / "sets" / "aa_2")
    c = make(tmp_path / "sets" / "other")
    (tmp_path / "sets" / "notes").mkdir()
    assert runs.find([a, c]) == [a, c]
    assert runs.find([tmp_path / "sets"]) == [a, b, c]
    assert runs.find([tmp_path / "sets" / "aa_*", a]) == [a, b]
    with pytest.raises(ConfigError, match="matches no run"):
        runs.find([tmp_path / "sets" / "bb_*"])


def test_the_best_evaluation_is_the_largest_score_and_the_smallest_loss(tmp_path):
    facts = runs.read(make(tmp_path / "a", loss=2.0), report)
    assert facts["best_eval"]["top1"] == {"value": pytest.approx(0.7), "step": 20}
    assert facts["best_eval"]["loss"] == {"value": 2.0, "step": 10}
    assert facts["eval"]["top1"] == pytest.approx(0.6)
    assert (facts["parameters"], facts["time"]) == (None, "")


def test_a_run_that_cannot_be_read_is_reported_beside_the_others(tmp_path):
    make(tmp_path / "a")
    (make(tmp_path / "b") / "config.json").write_text("{broken")
    (tmp_path / "c").mkdir()
    found = [runs.read(tmp_path / name, report) for name in "abc"]
    assert ["error" in run for run in found] == [False, True, True]
    assert "config.json" in found[1]["error"]


def test_keys_that_differ_are_those_that_all_runs_have(tmp_path):
    options = [{"rate": 0.1, "vision.only": 1}, {"rate": 0.2, "blocks": [1, 2]}, {"rate": 0.1}]
    found = [
        runs.read(make(tmp_path / str(n), name=f"run {n}", **some), report)
        for n, some in enumerate(options)
    ]
    assert runs.differences(found) == {"rate": [0.1, 0.2, 0.1]}
    broken = {"workdir": "x", "error": "gone"}
    assert runs.differences([*found, broken]) == {"rate": [0.1, 0.2, 0.1, None]}
    assert runs.differences(found[:1]) == {}


def test_labels_are_as_long_as_they_need_to_be(tmp_path):
    given = [{"workdir": f"/x/{name}"} for name in ("a/run", "b/run")]
    assert runs.labels(given) == ["a/run", "b/run"]
    assert runs.labels([{"workdir": "/x/a/one"}, {"workdir": "/x/b/two"}]) == ["one", "two"]
