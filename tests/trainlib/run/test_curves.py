"""curves.png: what is drawn, and what happens without matplotlib or without data."""

import builtins

import pytest

from trainlib import commands
from trainlib.run import curves as plots
from trainlib.run.metric_writers import JsonLines


def write(workdir):
    writer = JsonLines(workdir / "metrics.jsonl")
    for step in range(1, 41):
        writer.write(step, "train", {"loss": 1 / step, "learning_rate": 0.1, "accuracy": 0.5})
        if step % 20 == 0:
            result = {"loss": 2 / step, "top1": step / 40, "examples": 360, "note": "x"}
            writer.write(step, "eval", result)
    writer.write(41, "train", {"loss": float("nan")})
    writer.close()


def test_series_hold_every_number_by_name_and_kind(tmp_path):
    write(tmp_path)
    found = plots.series(tmp_path / "metrics.jsonl")
    assert found["loss"]["eval"] == [(20, 0.1), (40, 0.05)]
    assert len(found["loss"]["train"]) == 41
    assert set(found) == {"loss", "learning_rate", "accuracy", "top1", "examples"}
    names = "loss", "learning_rate", "accuracy", "top1"
    assert plots._panels(found) == {name.replace("_", " "): [name] for name in names}


def test_figures_that_are_read_together_share_a_panel(tmp_path):
    writer = JsonLines(tmp_path / "metrics.jsonl")
    figures = dict.fromkeys(("ap", "ap50", "ap75", "ap_small", "ar_1", "ar_100"), 0.5)
    for step in (10, 20):
        writer.write(step, "train", {"loss": 1.0})
        writer.write(step, "eval", figures | {"examples": 9, "detections": 99})
    writer.close()
    assert plots._panels(plots.series(tmp_path / "metrics.jsonl")) == {
        "loss": ["loss"],
        "average precision": ["ap", "ap50", "ap75"],
        "average precision by size": ["ap_small"],
        "average recall with 1, 10, 100 detections": ["ar_1", "ar_100"],
    }
    pytest.importorskip("matplotlib", reason="matplotlib is an optional dependency")
    assert plots.curves(tmp_path)


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is an optional dependency")
    write(tmp_path)
    path = plots.curves(tmp_path)
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_line_says_so(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    write(tmp_path)
    monkeypatch.setattr(builtins, "__import__", without)
    assert plots.curves(tmp_path) is None
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert commands.install("plots") in out


def test_without_data_one_line_says_so(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is an optional dependency")
    JsonLines(tmp_path / "metrics.jsonl").close()
    assert plots.curves(tmp_path) is None
    assert "holds no loss" in capsys.readouterr().out
