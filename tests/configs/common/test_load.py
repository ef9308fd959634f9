"""Where a configuration is found: shipped ones by name, files of one's own by their path."""

import json

import pytest

from configs.common import load
from trainlib.errors import ConfigError

MINE = "from configs.aa_resnet50 import get_config as base\ndef get_config(variant=''):\n"
MINE += "    config = base('digits')\n    config.name = 'mine'\n    return config\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    return tmp_path


def name_of(text):
    return load.from_flags(text, {}).config.name


@pytest.mark.parametrize(
    "text", ["aa_resnet50:digits", "configs/aa_resnet50.py:digits", "aa_resnet50.py:digits"]
)
def test_shipped_ones_are_found_from_any_directory(text, folder, capsys):
    assert name_of(text) == "aa_resnet50:digits"
    assert capsys.readouterr().err == ""


def test_a_file_of_ones_own(folder, capsys):
    (folder / "configs" / "mine.py").write_text(MINE)
    assert name_of("configs/mine.py") == name_of(str(folder / "configs" / "mine.py")) == "mine"
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match=r"no such file\. Did you mean configs/mine\.py\?"):
        name_of("mine")


def test_of_two_with_one_name_the_one_that_is_read_is_said(folder, capsys):
    (folder / "configs" / "aa_resnet50.py").write_text(MINE)
    assert name_of("configs/aa_resnet50.py") == "mine"
    said = " ".join(capsys.readouterr().err.split())
    assert "configs/aa_resnet50.py of this directory is read" in said
    assert name_of("aa_resnet50:digits") == "aa_resnet50:digits"
    said = " ".join(capsys.readouterr().err.split())
    assert "is the shipped configuration, not configs/aa_resnet50.py of this directory" in said


def test_a_copy_of_a_shipped_one_needs_no_word(folder, capsys):
    shipped = load.FOLDER / "aa_resnet50.py"
    (folder / "configs" / "aa_resnet50.py").write_bytes(shipped.read_bytes())
    assert name_of("configs/aa_resnet50.py:digits") == "aa_resnet50:digits"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["other/aa_resnet50.py", "/nowhere/configs/aa_resnet50.py"])
def test_a_path_to_elsewhere_is_never_answered_with_a_shipped_one(text, folder):
    with pytest.raises(ConfigError, match="there is no such file"):
        name_of(text)


def test_a_run_notes_where_its_values_were_set(tmp_path):
    """Beside config.json, from a command line and from Python; a resumed run notes it anew."""
    from configs import load as of_python
    from trainlib.run.workdir import save_config

    def noted(config):
        save_config(config, tmp_path)
        return json.loads((tmp_path / "config_origin.json").read_text())

    origin = noted(load.from_flags("aa_resnet50:digits", {"seed": "3"}).config)
    assert origin["seed"] == "command line"
    assert origin["data.source"] == "aa_resnet50.py, variant digits"
    assert origin["name"] == "aa_resnet50.py, variant digits"
    assert origin["checkpoint.keep"] == "default"
    assert set(origin) == set(json.loads((tmp_path / "config.json").read_text()))
    assert noted(of_python("aa_resnet50:digits", steps=7))["steps"] == "configs.load"
