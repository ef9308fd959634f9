"""The command that says whether a router is right."""

import json

import pytest

from launch import conformance
from trainlib.errors import ConfigError, DataError

ROUTER = """
from moe.conformance.reference import Answer, answer
from moe.conformance.settings import rules
from moe.conformance.verdict import CannotExpress


def right(case):
    return answer(case.logits, case.mask, case.draws, rules(case.settings))


def broken(case):
    return 1 / 0


def silent(case):
    pass


def mute(case):
    return Answer()


def picky(case):
    raise CannotExpress("hash routing alone")


def wrong(case):
    return answer(case.logits, case.mask, case.draws, rules(case.settings, dispatch="dropless"))


class Demanding:
    def __init__(self, weights):
        pass

    def route(self, case):
        return right(case)
"""


@pytest.fixture(autouse=True)
def routers(tmp_path, monkeypatch):
    (tmp_path / "command_line_routers.py").write_text(ROUTER)
    monkeypatch.chdir(tmp_path)


def test_a_right_router_ends_with_0(capsys):
    assert conformance.main(["--adapter=command_line_routers:right", "--only=top1,ties"]) == 0
    out = capsys.readouterr().out
    assert "Router conformance of command_line_routers:right, 40 cases" in out
    assert "Verdict: right." in out


def test_a_wrong_router_ends_with_1_and_names_the_bug(capsys):
    assert conformance.main(["--adapter=command_line_routers:wrong", "--only=top1"]) == 1
    out = capsys.readouterr().out
    assert "  capacity is ignored (routing, " in out
    assert "found in: huggingface/transformers#48293" in out
    assert conformance.main(["--adapter=command_line_routers:wrong", "--only=top1", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    (reading,) = data["readings"]
    assert reading["name"] == "capacity is ignored"
    # All but cases in which no expert is full.
    assert data["counts"]["routing"]["bug"] == len(reading["cases"]) > 15
    assert len(data["findings"]) == 60


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ([], ConfigError, "name a router"),
        (["--adapter=command_line_routers:broken"], ConfigError, "stops with ZeroDivisionError"),
        (["--adapter=command_line_routers:silent"], ConfigError, "returns NoneType for case"),
        (
            ["--adapter=command_line_routers:picky", "--only=top1"],
            ConfigError,
            r"Nothing was judged.*none of the 20 cases \(hash routing alone: 20 cases\)",
        ),
        (["--adapter=command_line_routers:mute", "--only=top1"], ConfigError, "Nothing was judged"),
        (
            ["--adapter=command_line_routers:Demanding"],
            ConfigError,
            "stops with TypeError when it is made without arguments.*'weights'",
        ),
        (["--adapter=mo"], ConfigError, "Did you mean 'moe'"),
        (["--adapter=moe", "--config.x=1"], ConfigError, "reads no configuration"),
        (["--adapter=command_line_routers:right", "--only=top9"], DataError, "Themes: "),
        (["--adapter=command_line_routers:right", "--cases=."], DataError, "no cases"),
    ],
)
def test_what_cannot_work_is_named(flags, error, words):
    with pytest.raises(error, match=words):
        conformance.main(flags)


@pytest.mark.parametrize("line", [b"\xff\n", b"[" * 100_000, b"{}\n", b"[]\n", b"\n"])
def test_a_file_that_holds_no_cases_is_named(line, tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(line)
    flags = ["--adapter=command_line_routers:right", f"--cases={tmp_path}"]
    with pytest.raises(DataError, match=r"mine\.jsonl, line 1"):
        conformance.main(flags)
