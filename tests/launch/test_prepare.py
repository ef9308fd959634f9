"""`launch.prepare`: what it makes, that it goes on, and mistakes with their exit codes."""

import json
from pathlib import Path

import pytest

from launch import prepare
from moe.data.cache.read import Cache
from trainlib import commands
from trainlib.errors import run_command

TINY = "--config=configs/st_moe_tiny.py"


@pytest.fixture
def run(tmp_path, capsys):
    """Returns a function that runs the command: (exit code, output, errors as one line)."""

    def call(*arguments, config=TINY):
        argv = [config, f"--config.data.cache={tmp_path}/cache", *arguments]
        code = run_command(lambda: prepare.main(argv))
        out, err = capsys.readouterr()
        return code, out, " ".join(err.split())

    return call


def caches(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").iterdir())


def test_prepares_both_splits_and_says_what_they_hold(run, tmp_path):
    code, out, _ = run("--verify")
    assert code == 0
    assert "pydoc (train): " in out
    assert "pydoc (holdout): " in out
    assert "unigram entropy 3." in out  # of English bytes, in nats
    made = caches(tmp_path)
    assert [name.rsplit("-", 1)[0] for name in made] == ["pydoc-holdout", "pydoc-train"]
    before = {p: p.stat().st_ino for p in (tmp_path / "cache").rglob("*")}
    code, again, _ = run()
    assert code == 0
    assert "shard" not in again  # nothing is made twice
    assert before == {p: p.stat().st_ino for p in (tmp_path / "cache").rglob("*")}


def text(tmp_path, **files):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.txt").write_bytes(content)
    return f"--config.data.source=text:{folder}"


def test_unusable_files_are_listed_and_the_rest_is_used(run, tmp_path):
    source = text(tmp_path, good=b"text " * 50, empty=b"", latin=b"caf\xe9")
    code, out, _ = run(source, "--config.data.holdout=0", "--split=train")
    assert code == 0
    assert "1 documents, 250 tokens" in out
    assert "left out: 2 of 3 documents" in out
    assert "empty.txt offset 0: is empty" in out
    assert "latin.txt offset 0: is not UTF-8 (byte 0xe9" in out


def test_too_many_unusable_files(run, tmp_path):
    files = {f"bad{n}": b"\xff" for n in range(9)}
    source = text(tmp_path, good=b"text", **files)
    code, _, error = run(source, "--config.data.holdout=0", "--split=train")
    assert code == 65
    assert "9 of the 10 records read so far cannot be used" in error
    assert "bad8.txt offset 0: is not UTF-8" in error
    assert not [name for name in caches(tmp_path) if not name.endswith(".partial")]


def test_shares_of_several_machines(run, tmp_path, monkeypatch):
    from moe.data import catalog

    monkeypatch.setattr(catalog, "_SHARD_BYTES", 100)
    source = text(tmp_path, **{f"t{n}": b"text " * 30 for n in range(6)})
    arguments = (source, "--config.data.holdout=0", "--split=train", "--workers=0")
    code, out, _ = run(*arguments, "--part=1/2")
    assert code == 0
    assert "run the other --part" in out
    code, out, _ = run(*arguments, "--part=0/2")
    assert code == 0
    assert "6 documents, 900 tokens" in out


def test_a_damaged_cache_is_found(run, tmp_path):
    run("--split=holdout")
    (directory,) = (tmp_path / "cache").iterdir()
    shard = directory / f"{Cache(directory).shards[0].name}.tokens"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(content)
    code, _, error = run("--split=holdout", "--verify")
    assert code == 65
    assert f"{shard} is damaged" in error


def test_mixtures_prepare_each_part(run, tmp_path):
    source = text(tmp_path, good=b"text " * 50)
    folder = source.partition("=")[2]
    code, _, _ = run(
        "--config.data.source=mixture",
        "--split=train",
        "--config.data.holdout=0",
        f"--config.data.parts=(('pydoc',0.75),('{folder}',0.25))",
    )
    assert code == 0
    assert len(caches(tmp_path)) == 2


MISTAKES = [
    (["--config.data.source=pidoc"], 64, ["'pidoc'", "Did you mean 'pydoc'"]),
    (["--config.data.source=text:/no/where"], 65, ["nothing to read", ".txt or .md"]),
    (["--config.data.source=mixture:st_moe_32b"], 65, ["you must supply: webpages (rate 0.34"]),
    (["--config.data.vocabulary=word"], 64, ["data.vocabulary='word'", "bytes"]),
    (["--config.data.vocabulary=sentencepiece:/no/file"], 65, ["cannot be read"]),
    (["--config.data.extra_ids=300"], 65, ["559 ids", "the model has 512", "vocab_size=640"]),
    (["--config.data.max_bad_fraction=2"], 64, ["data.max_bad_fraction=2 is not allowed"]),
    (["--config.data.cache=/proc/none"], 74, ["cannot be made", "data.cache=DIR"]),
    (["--part=2/2"], 64, ["--part=2/2", "I/N"]),
    (["--split=test"], 64, ["'test'", "train", "holdout"]),
    (["--workrs=2"], 64, ["'--workrs'", "Did you mean '--workers'"]),
]


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES, ids=lambda v: str(v)[:40])
def test_mistakes(run, arguments, code, words):
    got, _, error = run(*arguments)
    assert got == code, error
    assert [word for word in words if word not in error] == []


def test_vision_has_nothing_to_prepare(capsys):
    argv = ["--config=configs/aa_resnet50.py:digits"]
    assert run_command(lambda: prepare.main(argv)) == 64
    assert "nothing to prepare for the family vitattn" in " ".join(capsys.readouterr().err.split())


def test_missing_seqio_is_named(run, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "seqio", None)
    for source in ("c4", "tfds:glue/mnli", "seqio:my_task"):
        code, _, error = run(f"--config.data.source={source}")
        assert code == 64
        assert commands.install("text") in error


def test_a_saved_configuration_reads_the_same_cache(run, tmp_path):
    """Mixtures survive the way through JSON, where tuples become lists."""
    from configs.common import load
    from trainlib.config import to_json

    parts = "--config.data.parts=(('pydoc',0.75),('pydoc',0.25))"
    arguments = {"data.source": "mixture", "data.parts": parts.partition("=")[2]}
    saved = tmp_path / "config.json"
    saved.write_text(to_json(load.from_flags("configs/st_moe_tiny.py", arguments).config))
    assert json.loads(saved.read_text())["data.parts"] == [["pydoc", 0.75], ["pydoc", 0.25]]
    code, _, _ = run("--split=holdout", config=f"--config={saved}")
    assert code == 0
    assert len(caches(tmp_path)) == 1


def test_runs_from_any_directory(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, _ = run("--split=holdout")
    assert code == 0
    assert Path("cache").is_dir()


def test_files_that_changed_are_noticed(run, tmp_path):
    source = text(tmp_path, a=b"some text")
    arguments = (source, "--config.data.holdout=0", "--split=train")
    assert run(*arguments)[0] == 0
    (tmp_path / "texts" / "a.txt").write_bytes(b"same size")
    code, output, error = run(*arguments)
    assert code == 0, error
    assert "changed since" in output + error


def test_other_definitions_of_tasks_are_noticed(run, tmp_path, monkeypatch):
    """What a Task makes of its source stands in the file of --tasks alone."""
    monkeypatch.setattr("moe.text.seqio_source.load_definitions", lambda path: None)
    tasks = tmp_path / "tasks.py"
    tasks.write_text("one")
    arguments = (text(tmp_path, a=b"x"), "--config.data.holdout=0", "--split=train")
    for _ in range(2):
        assert run(*arguments, f"--tasks={tasks}", "--workers=0")[0] == 0
    tasks.write_text("two")
    code, _, error = run(*arguments, f"--tasks={tasks}", "--workers=0")
    assert code == 65
    assert "another version of" in error
