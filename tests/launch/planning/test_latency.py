"""`launch.describe --table=papers --latency`: rows, columns, progress, mistakes."""

import json

import pytest

from launch import describe
from launch.planning import latency as table
from trainlib.errors import run_command
from vitattn import latency, papers
from vitattn.latency import Latency, Setting

LABELS = ("ResNet-50", "AA-ResNet-50", "AA-ResNet-50, position relative", "SE-WRN-28-10")
TABLES = [f"1904.09925 {name}" for name in ("ImageNet", "position encodings", "CIFAR-100")]
ROWS = [row for row in papers.published() if row.label in LABELS and row.source in TABLES]


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(papers, "published", lambda: ROWS)


@pytest.fixture
def timed(monkeypatch):
    """Figures in place of measurements: 30 ms with attention, 20 without. Gives what was timed."""
    asked = []

    def fake(section, setting, *target):
        asked.append((section, setting, *target))
        seconds = 0.03 if section.get("attention") else 0.02
        runs = 0 if target else 9
        device = target[0] if target else "a machine"
        size = setting.image_size or 224
        return Latency(
            *(seconds, 0.9 * seconds, 1.1 * seconds, runs, setting.batch, (size, size)),
            *(setting.dtype or "float32", device),
        )

    monkeypatch.setattr(latency, "measure", fake)
    monkeypatch.setattr(latency, "predict", fake)
    return asked


def run(*flags):
    return run_command(lambda: describe.main(["--table=papers", *flags]))


def lines(capsys):
    out = capsys.readouterr().out.splitlines()
    return out[0], {line.split("  ")[0]: line for line in out[1:]}


def test_rows_are_chosen_by_name_or_by_table(capsys):
    assert run("--rows=se-wrn") == 0
    models, table_1 = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in models.splitlines()] == ["model", LABELS[3]]
    assert table_1.startswith("arXiv 1904.09925 table 1")
    assert [row.label for row in table.chosen(ROWS, "cifar-100")] == [LABELS[3]]
    assert [row.label for row in table.chosen(ROWS, "aa*position")] == [LABELS[2]]
    assert table.chosen(ROWS, "") == ROWS


def test_a_row_that_is_not_there_is_refused(capsys):
    assert run("--rows=ResNet-51", "--latency") == 64
    assert "Did you mean 'ResNet-50'" in " ".join(capsys.readouterr().err.split())


def test_columns_of_what_was_measured(timed, capsys):
    assert run("--rows=ResNet-50", "--latency", "--batch=4", "--dtype=bfloat16") == 0
    heading, rows = lines(capsys)
    assert heading == (
        "Inference of 4 images of 224 x 224 pixels, bfloat16, measured on a machine: median of 9 "
        "or more runs after a first."
    )
    for cell in ("ms", "quartiles", "images/s", "of the base"):
        assert cell in rows["model"]
    for cell in ("30", "27 - 33", "133.3", "1.50 x"):
        assert cell in rows["AA-ResNet-50"]
    for cell in ("20", "18 - 22", "200"):
        assert cell in rows["ResNet-50"]
    assert "x" not in rows["ResNet-50"].split("200")[1].split("1904")[0]
    assert timed[0][1] == Setting(4, "bfloat16")


def test_a_model_is_measured_once_and_progress_says_what_is_left(timed, capsys):
    assert run("--rows=ResNet-50", "--latency") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if " ms" in line]
    assert [line.split(":")[0] for line in told] == [*LABELS[:3]]
    assert told[0].startswith("ResNet-50: 20 ms (1 of 3, about ")
    assert "left" not in told[-1]
    assert len(timed) == 2, "relative positions are what an attention-augmented network has"


def test_a_prediction_says_of_what_and_that_nothing_was_run(timed, capsys):
    assert run("--rows=SE-WRN", "--latency=v5e-1", "--compile_cache=off") == 0
    heading, rows = lines(capsys)
    assert "predicted for v5e-1 by libtpu" in heading
    assert "not run" in heading
    assert "predicted" in rows["SE-WRN-28-10"]
    assert timed[0][2] == "v5e-1"


def test_a_prediction_is_kept_for_the_next_call(timed, tmp_path):
    found = [table.Clock("v5e-1", Setting(batch=n), 1, tmp_path).of(ROWS[0]) for n in (1, 2, 1)]
    assert [setting.batch for _, setting, _ in timed] == [1, 2]
    assert found[0] == found[2]
    assert found[0].latency.image_size == (224, 224)


def test_latency_as_json(timed, capsys):
    assert run("--rows=ResNet-50", "--latency", "--json") == 0
    rows = {row["label"]: row["latency"] for row in json.loads(capsys.readouterr().out)["models"]}
    assert rows["AA-ResNet-50"]["seconds"] == 0.03
    assert rows["AA-ResNet-50"]["of_base"] == pytest.approx(1.5)
    assert rows["ResNet-50"]["of_base"] is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--table=papers", "--latency", "--batch=0"], "--batch"),
        (["--table=papers", "--latency", "--dtype=float16"], "bfloat16"),
        (["--table=papers", "--latency=v5e1", "--rows=SE-WRN"], "v5e-1"),
        (["--latency"], "--table=papers"),
    ],
)
def test_mistakes_are_named(flags, words, capsys):
    assert run_command(lambda: describe.main(flags)) == 64
    assert words in capsys.readouterr().err
