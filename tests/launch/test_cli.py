"""What every command does before it starts."""

import sys

import pytest

from launch import cli


def test_windows_is_refused_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as left:
        cli.run(lambda argv: pytest.fail("the command was started"))
    assert left.value.code == 64
    assert "WSL2" in capsys.readouterr().err
