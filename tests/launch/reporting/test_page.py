"""The page as a file: complete, alone, of bounded size, and nothing that a file says runs in it."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from launch import report
from launch.reporting import page as page_module
from tests.html_reader import Reader
from tests.launch.reporting import fixtures
from tests.launch.reporting.fixtures import EVIL
from trainlib.errors import ConfigError


def written(path, *flags):
    assert report.main([*map(str, flags), f"--html={path}", "--json"]) == 0
    return path.read_text()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    made = fixtures.make(tmp_path_factory.mktemp("runs") / "small")
    fixtures.answers(made, 100)
    return made


@pytest.fixture(scope="module")
def page(workdir):
    return written(workdir.parent / "page.html", workdir)


def test_everything_of_the_run_is_said(page, workdir):
    text = Reader(page).text
    manifest = (workdir / "checkpoints" / "100" / "manifest.json").read_bytes()
    for said in (
        *("small", "complete", "8 x TPU v5e", "jax 0.10.2"),
        "The training loss fell from",
        "The best accuracy of the evaluations is 90.0 %, at step 100.",
        *("dead expert, decoder.3", "Expert 1 is sent nothing.", "Raise routing.balance_loss."),
        *("schedule.learning_rate", "0.25", "small.py", "command line"),
        "training steps, all runs in the workdir together",
        *(hashlib.sha256(manifest).hexdigest(), "params/embed", "0123456789abcdef"),
        *("Held-out examples. Step 100.", "copa 3", "A text.", "75.0 %"),
        "The run was started 2 times.",
    ):
        assert said in text, said
    assert "is not known here" not in text


def test_the_page_needs_nothing_and_nobody(page):
    read = Reader(page)
    assert not {"link", "iframe", "object", "embed", "form"} & set(read.tags)
    links = [value for _, name, value in read.attributes if name in ("src", "href")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in links)
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(http|fetch\(|XMLHttpRequest|innerHTML", page)
    assert "default-src 'none'" in page
    assert page.startswith(page_module.MARK)


def test_names_and_values_are_text_and_nothing_else(tmp_path):
    made = fixtures.make(tmp_path / "small", name=EVIL, **{f"key{EVIL}": EVIL})
    fixtures.answers(made, 100, title=EVIL)
    with (made / "metrics.jsonl").open("a") as file:
        for kind in ("train", EVIL):
            record = {"step": 101, "kind": kind, EVIL: 2.0, f"router/{EVIL[:9]}/load_0": 1.0}
            file.write(json.dumps(record) + "\n")
        alert = {"step": 101, "kind": "alert", "alert": EVIL, "where": EVIL, "text": EVIL}
        file.write(json.dumps(alert) + "\n")
    made_page = written(tmp_path / "page.html", made)
    assert EVIL not in made_page
    read = Reader(made_page)
    assert read.tags.count("script") == 2
    assert [
        value for tag, name, value in read.attributes if (tag, name) == ("img", "onerror")
    ] == []


def test_runs_are_compared(workdir, tmp_path):
    other = fixtures.make(tmp_path / "warm", faster=2.0, seed=1)
    text = Reader(written(tmp_path / "p.html", workdir, "--compare", other)).text
    for said in ("2 runs compared", "Side by side", "warm", "Where the runs differ", "seed"):
        assert said in text, said


def test_a_run_that_cannot_be_read_is_named_and_the_first_is_refused(workdir, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("[")
    text = Reader(written(tmp_path / "p.html", workdir, tmp_path / "bad")).text
    assert "Runs that cannot be read" in text
    with pytest.raises(ConfigError, match=r"config\.json"):
        written(tmp_path / "p.html", tmp_path / "bad")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"family": "none"}, "family='none' is not known."),
        ({"optimizer.name": "unknown_rules:signum"}, "optimizer.name names code"),
    ],
)
def test_keys_without_meanings_say_why(changed, why, tmp_path):
    read = Reader(written(tmp_path / "p.html", fixtures.make(tmp_path / "small", **changed)))
    assert "What the keys mean is not known here: " in read.text
    assert why in read.text
    assert "schedule.learning_rate" in read.text


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "new", "steps": 3}')
    text = Reader(written(tmp_path / "p.html", tmp_path)).text
    assert "Nothing has been measured yet." in text
    assert "None has been saved." in text


def test_damaged_checkpoints_and_samples_say_why(tmp_path):
    made = fixtures.make(tmp_path / "small")
    (made / "checkpoints" / "50" / "data").write_bytes(b"")
    (made / "report").mkdir()
    (made / "report" / "samples-100.json").write_text("{")
    text = Reader(written(tmp_path / "p.html", made)).text
    assert "has 0 bytes, and 1,000 were written" in text
    assert "samples-100.json" in text


def test_only_a_page_of_a_report_is_written_over(workdir, tmp_path):
    path = tmp_path / "notes.html"
    path.write_text("my notes")
    with pytest.raises(ConfigError, match="no page that this command wrote"):
        written(path, workdir)
    assert path.read_text() == "my notes"


def test_samples_fill_what_is_left_of_a_page(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MOST_BYTES", 1)
    text = Reader(written(tmp_path / "p.html", workdir)).text
    assert "2 more do not fit into the page." in text
