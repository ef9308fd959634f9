"""`launch.describe`: the table of the papers, one configuration, mistakes."""

import json

import pytest

from configs.common import load
from launch import describe, families
from trainlib.errors import run_command
from vitattn import papers

# Four rows stand for all, which tests/vitattn/test_papers.py checks: one that matches, a
# known miss in parameters, one without printed counts, one of a detector.
LABELS = (
    "AA-ResNet-50",
    "AA-WRN-28-10",
    "AA-ResNet-50, position none",
    "RetinaNet-50",
)


@pytest.fixture
def four_rows(monkeypatch):
    rows = [row for row in papers.published() if row.label in LABELS]
    assert len(rows) == len(LABELS)
    monkeypatch.setattr(papers, "published", lambda: rows)


@pytest.mark.thorough
def test_the_table_of_papers_shows_both_figures_and_what_lies_between(four_rows, capsys):
    assert run_command(lambda: describe.main(["--table=papers"])) == 0
    models, *exhibits = capsys.readouterr().out.split("\n\n")
    lines = {line.split("  ")[0]: line for line in models.splitlines()}
    assert set(lines) == {"model", *LABELS}
    assert len(exhibits) == 53
    for cell in ("25,809,392", "25.8", "+0.01", "77.7 / 93.8", "1904.09925 ImageNet"):
        assert cell in lines["AA-ResNet-50"]
    assert "-0.15" in lines["AA-WRN-28-10"]
    assert "36.05 M" in lines["AA-WRN-28-10"], "a miss says why"
    assert " - " in lines["AA-ResNet-50, position none"]
    for cell in ("33,420,404", "182.33", " - ", "36.8 / 54.5 / 39.5", "1904.09925 COCO"):
        assert cell in lines["RetinaNet-50"]


def test_the_table_of_papers_as_json(four_rows, capsys):
    assert run_command(lambda: describe.main(["--table=papers", "--json"])) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = {row["label"]: row for row in facts["models"]}
    row = rows["AA-ResNet-50"]
    assert row["params"] == 25_809_392
    printed = {"params": 25.8, "gflops": 8.3, "top1": 77.7, "top5": 93.8}
    assert row["published"] == {**printed, "ap": None, "ap50": None, "ap75": None}
    assert row["params_delta"] == pytest.approx(0.009392)
    assert row["gflops"] == pytest.approx(8.3, rel=0.03)
    assert row["gflops_delta"] == pytest.approx(100 * (row["gflops"] / 8.3 - 1))
    assert rows["AA-ResNet-50, position none"]["params_delta"] is None
    assert rows["RetinaNet-50"]["published"]["ap75"] == 39.5
    kinds = [(exhibit["paper"], exhibit["kind"]) for exhibit in facts["exhibits"]]
    assert kinds.count(("st_moe", "table")) == 21


def test_exhibits_are_chosen_by_their_source_or_their_rows(four_rows, capsys):
    assert run_command(lambda: describe.main(["--table=papers", "--rows=02.08906 table 9"])) == 0
    out = capsys.readouterr().out
    assert out.count("arXiv") == 1
    assert "ST-MoE-32B, 2.0   4.819 (+14%)" in out
    assert run_command(lambda: describe.main(["--table=papers", "--rows=multiplicative bias"])) == 0
    out = capsys.readouterr().out
    assert "Sparse + Multiplicative Bias  -1.361" in out
    assert "Additive" not in out
    assert run_command(lambda: describe.main(["--table=papers", "--rows=nothing"])) == 64
    assert "no row of the table" in " ".join(capsys.readouterr().err.split())


def test_another_table_is_refused(capsys):
    assert run_command(lambda: describe.main(["--table=paper"])) == 64
    assert "Did you mean 'papers'" in capsys.readouterr().err


def test_one_configuration_and_its_variant(capsys):
    argv = ["--config=configs/sasa_resnet26.py:conv", "--json"]
    assert run_command(lambda: describe.main(argv)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["name"] == "sasa_resnet26:conv"
    assert facts["params"] == sum(facts["params_by_part"].values()) == 13_696_552
    assert facts["published"]["top1"] == 74.5
    assert facts["flops_per_example"] == pytest.approx(4.7e9, rel=0.01)


def test_the_second_table_is_the_first_without_its_work(monkeypatch, tmp_path):
    names = ("configs/reproduce_small.py", "configs/st_moe_tiny.py")
    small = [load.from_flags(name, {}).config for name in names]
    first = describe._kept(small, tmp_path)
    monkeypatch.setattr(families.Vision, "describe", None)
    monkeypatch.setattr(families.Language, "describe", None)
    again = describe._kept(small, tmp_path)
    assert json.dumps(again) == json.dumps(first)
    assert [facts["name"] for facts in again] == ["reproduce_small", "st_moe_tiny"]
    with pytest.raises(AttributeError):
        describe._kept(small[:1], tmp_path)


def test_figures_that_cannot_be_kept_are_printed(tmp_path):
    (tmp_path / "described").touch()
    config = load.from_flags("configs/reproduce_small.py", {}).config
    assert describe._kept([config], tmp_path)[0]["params"] == 738_586
