"""The command that a model card gives: it makes the same configuration, and tells no directory."""

import pytest

from configs.common import command, load
from launch import cli
from trainlib import paths
from trainlib.config import flatten
from trainlib.step import schedules

HOME = "/users/me/a secret"
RUNS = {
    "digits": (
        "configs/aa_resnet50.py:digits",
        {"steps": "400", "model.blocks": "1,1,1,1", "data.mean": "0.1,0.2,0.3", "ema_decay": "0"},
        {},
    ),
    "folder": (
        "configs/aa_resnet50.py",
        {"data.source": f"folder:{HOME}", "data.dir": "~/data", "init_from": "runs/mine"},
        {
            "data.source": "folder:PATH",
            "data.dir": "DATA_DIR",
            "init_from": "INIT_FROM",
        },
    ),
    "another kind of layer": (
        "configs/sasa_resnet26.py:halo",
        {"model.attention.kind": "none", "optimizer.decay_pattern": "^(?!.*norm, it's)"},
        {},
    ),
    "mixture": (
        "configs/st_moe_tiny.py",
        {
            "data.source": "mixture",
            "data.parts": f"[('text:{HOME}', 1.5), ('pydoc', 2)]",
            "data.vocabulary": f"sentencepiece:{HOME}/m.model",
        },
        {
            "data.parts": (("text:PATH", 1.5), ("pydoc", 2.0)),
            "data.vocabulary": "sentencepiece:PATH",
        },
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_command_makes_the_configuration_again(run):
    source, flags, hidden = RUNS[run]
    config = load.from_flags(source, flags).config
    words = command.training(config)
    assert words[:4] == ["vitattn-moe", "train", f"--config={source}", "--workdir=WORKDIR"]
    assert "secret" not in " ".join(words)
    assert "runs/" not in " ".join(words)
    _, overrides = cli.parse(cli.parser("test", ""), words[4:])
    back = flatten(load.from_flags(source, overrides).config)
    assert back == flatten(config) | hidden


def test_a_configuration_of_ones_own_is_the_file_that_holds_it():
    config = load.from_flags("configs/aa_resnet50.py:digits", {"data.dir": HOME}).config
    config.name = "mine"
    assert command.training(config, "config.json")[2:] == [
        "--config=config.json",
        "--workdir=WORKDIR",
        "--config.data.dir=DATA_DIR",
    ]
    assert command.training(config)[2:] == [
        "--config=YOUR_CONFIGURATION.py",
        "--workdir=WORKDIR",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/users/me/x", "PATH"),
        ("part/text:/users/me/x/loss", "part/text:PATH"),
        ("see ~/x and ~me/y, then", "see PATH and PATH, then"),
        ("C:\\Users\\me", "PATH"),
        ("eval/top1", "eval/top1"),
        ("a/b c / d", "a/b c / d"),
    ],
)
def test_paths_are_found_in_text(text, expected):
    assert paths.without_paths(text) == expected


def test_a_run_of_epochs_is_trained_again_by_its_steps(tmp_path, monkeypatch):
    """`steps` and `epochs` of one command line contradict each other; and a file of the current
    directory that is called as a shipped one is not what the command of others reads.
    """
    config = load.from_flags("resnet50:digits", {"epochs": "3"}).config
    schedules.settle_epochs(config, 1437)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "resnet50.py").write_text("raise RuntimeError('not asked for')")
    monkeypatch.chdir(tmp_path)
    words = command.training(config)
    (tmp_path / "configs" / "resnet50.py").unlink()
    flags = dict(word.removeprefix("--config.").split("=", 1) for word in words[4:])
    again = load.from_flags(words[2].removeprefix("--config="), flags).config
    assert (again.steps, again.schedule.warmup_steps) == (45, config.schedule.warmup_steps)
