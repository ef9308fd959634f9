"""`launch.report` on workdirs as runs leave them."""

import json
import sys
from pathlib import Path

import pytest

from launch import report
from tests.launch.comparing.fixtures import make
from trainlib.errors import ConfigError, UserError
from trainlib.run import goodput
from trainlib.run.metric_writers import Writers


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"name": "small", "steps": 30, "seed": 0}))
    writers = Writers(tmp_path, tensorboard=False)
    for step in (1, 2, 20):
        writers.write(step, "train", {"loss": 3.0 / step, "router/encoder.3/load_0": 0.5})
    writers.write(10, "eval", {"top1": 0.75})
    parts = {"steps": 0.5, "input_wait": 0.1, "checkpoint_stall": 0.1, "evaluation": 0.1}
    writers.write(20, "goodput", {**parts, "start": 0.2, "examples_per_second": 1234.0, "mfu": 0.4})
    writers.close()
    for name in ("10", "20", "20.damaged"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    return tmp_path


def test_a_run_on_its_way(workdir, capsys):
    (workdir / "run.lock").write_text('{"pid": 12, "host": "a"}\n')
    assert report.main([f"--workdir={workdir}"]) == 0
    output = capsys.readouterr().out
    for words in (
        "held by process 12 on a",
        "20 of 30, written ",
        "loss 0.15",
        "top1 0.75",
        "1,234 examples/s, MFU 40.0 %",
        "steps 50 %, data 10 %, saves 10 %, evaluation 10 %, start 20 %",
        "10, 20",
    ):
        assert words in output
    assert "router" not in output


@pytest.mark.parametrize("share", [1e308, "much", -1.0])
def test_shares_that_are_none_are_unknown(share, workdir, capsys):
    record = {"step": 21, "kind": "goodput", "steps": share, "mfu": share, "seconds": 1.0}
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    for flags in ([workdir], [workdir, make(workdir / "other", name="other")]):
        assert report.main([*map(str, flags), f"--html={workdir / 'page.html'}"]) == 0
        assert " inf" not in capsys.readouterr().out
        assert "inf %" not in (workdir / "page.html").read_text()
    assert goodput.percent(share) == "unknown"


def test_runs_are_compared_without_a_workdir(workdir, tmp_path_factory, capsys):
    other = make(tmp_path_factory.mktemp("two") / "other", name="other")
    assert report.main(["--compare", str(workdir), str(other)]) == 0
    assert "other" in capsys.readouterr().out
    for flags in ([f"--compare={workdir}"], [str(workdir), f"--compare={workdir}"]):
        with pytest.raises(ConfigError, match=r"the only run that is named\. Name both"):
            report.main(flags)


def test_a_page_or_a_picture_that_is_refused_comes_before_the_report(workdir, tmp_path, capsys):
    path = tmp_path / "notes.html"
    path.write_text("mine")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("[")
    for flags in (
        [workdir, f"--html={path}"],
        [bad, workdir, f"--html={tmp_path / 'new.html'}"],
        [workdir, f"--plot={tmp_path / 'x.nothing'}"],
    ):
        with pytest.raises(UserError):
            report.main(list(map(str, flags)))
        assert capsys.readouterr().out == ""


def test_the_same_as_data(workdir, capsys):
    (workdir / "run.lock").write_text("")
    report.main([f"--workdir={workdir}", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["step"], facts["steps"]) == ("small", 20, 30)
    assert facts["holder"] is None
    assert facts["checkpoints"] == [10, 20]
    assert facts["eval"]["top1"] == 0.75
    assert dict(report.rows(facts))["state"] == "not running"
    assert dict(report.rows({**facts, "step": 30}))["state"] == "complete"


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "small", "steps": 30}')
    facts = report.report(tmp_path)
    assert facts["step"] == 0
    assert dict(report.rows(facts))["checkpoints"] == "none"


def test_no_run_and_changes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        report.main([f"--workdir={tmp_path}"])
    with pytest.raises(ConfigError, match="changes nothing"):
        report.main([f"--workdir={tmp_path}", "--config.steps=3"])


def test_runs_side_by_side(workdir, tmp_path_factory, capsys):
    other = make(tmp_path_factory.mktemp("more") / "other")
    assert report.main([str(workdir), f"--workdir={other}", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in data["runs"]] == ["small", "small"]
    assert [run["best_eval"]["top1"]["step"] for run in data["runs"]] == [20, 10]
    assert data["differences"] == {}
    report.main([str(other), str(workdir), f"--plot={other / 'curves.svg'}"])
    out = capsys.readouterr().out
    assert "top1, best" in out
    assert "loss, top1 drawn in" in out
    assert (other / "curves.svg").stat().st_size > 1000
    with pytest.raises(ConfigError, match="name a run"):
        report.main([])


def test_jax_is_not_needed(workdir):
    """On a login node it answers at once, and starts no accelerator."""
    import subprocess

    make(workdir / "other")
    code = (
        "import sys\nfrom launch.report import main\n"
        f"main(['--workdir={workdir}'])\nmain(['{workdir}', '{workdir}/other'])\n"
        "sys.exit('jax' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2], timeout=1200
    )
    assert done.returncode == 0
