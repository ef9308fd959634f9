"""`launch.reproduce`: what it lists, the commands of the paper's scale, mistakes."""

import json

import pytest

from launch.reproduce import __main__ as reproduce
from trainlib.errors import run_command


def run(*argv):
    return run_command(lambda: reproduce.main(argv))


def test_all_tables_and_figures_are_listed(capsys):
    assert run() == 0
    out = capsys.readouterr().out
    for words in (
        "aa: Attention Augmented Convolutional Networks (arXiv 1904.09925)",
        "table 5    Sparse models are robust to dropped tokens when fine-tuning",
        "needs: C4 (public) and GLaM's data sets, which are private",
        "note:  a drawing; nothing in it is measured",
        "run:   `make reproduce-stability`",
        "run:   nothing at the paper's scale",
    ):
        assert words in out


def test_one_as_data_with_what_is_finished(tmp_path, capsys):
    assert run("--paper=sasa", "--table=4", f"--workdir={tmp_path}", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["scales"] == ["tiny", "full"]
    assert found["rows"]["SASA-ResNet-50, window 3"] == {"GFLOP": "6.6", "top-1 %": "76.4"}
    assert found["full"]["SASA-ResNet-50, window 3"] == "--config=sasa_resnet50:window3"
    assert (found["finished"], found["runs"]) == (0, 5)


def test_commands_of_the_papers_scale(capsys):
    assert run("--paper=st_moe", "--table=5", "--scale=full") == 0
    out = capsys.readouterr().out
    assert "# train 0.75, eval 2.0, no aux loss" in out
    assert "--config=st_moe_superglue" in out
    assert "--config.routing.capacity_factor=0.75" in out
    assert out.count("--workdir=DIR") == 8
    assert run("--paper=st_moe", "--table=5", "--scale=full", "--rows=0.75, eval", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["train 0.75, eval 2.0, aux loss", "train 0.75, eval 2.0, no aux loss"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--paper=stmoe"], "Did you mean 'st_moe'"),
        (["--paper=aa", "--table=9"], "has no table 9 here"),
        (["--paper=aa", "--table=7", "--scale=small"], "Allowed: full, tiny"),
        (["--paper=aa", "--table=7", "--scale=tiny"], "--workdir is missing"),
        (["--table=7"], "pass --paper as well"),
        (["--paper=aa", "--scale=full"], "pass --table or --figure as well"),
        (["--paper=aa", "--table=7", "--figure=1"], "conflicts with --figure"),
        (["--paper=aa", "--table=7", "--plan"], "pass --scale=full as well"),
        (["--paper=aa", "--table=7", "--scale=full", "--target=v5e-16"], "pass --plan as well"),
        (["--paper=aa", "--table=7", "--scale=tiny", "--workdir=x", "--seeds=0"], "no number of"),
        (["--paper=aa", "--table=7", "--cache=x"], "pass --plan as well"),
        (["--paper=aa", "--table=7", "--rows=none"], "pass --scale as well"),
        (["--paper=aa", "--table=7", "--seeds=2"], "pass that as well"),
        (["--paper=aa", "--table=7", "--scale=full", "--workdir=x"], "leave it out"),
        (["--paper="], "Allowed: aa, sasa, st_moe"),
        (["--paper=AA"], "Did you mean 'aa'"),
        (["--paper=aa", "--table=7", "--config.steps=3"], "sets its own keys"),
        (["--paper=st_moe", "--table=9", "--scale=tiny", "--workdir=x"], "There is --scale=full"),
        (["--paper=sasa", "--figure=1", "--scale=full"], "a drawing; nothing in it is measured"),
    ],
)
def test_mistakes(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 64
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
