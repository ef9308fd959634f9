"""`launch.predict` and `launch.evaluate` on texts, as a user types them, on weights that were saved
without training.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

import configs
from launch import evaluate, export, predict
from moe import plan as plan_lib
from moe.decoding.answer import Answerer
from moe.prediction.lines import Counts
from moe.prediction.partial_output import PartialOutput
from moe.tasks import records
from moe.text.vocabulary import EOS
from tests.launch.commands import ROOT, command, environment
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import run_command
from trainlib.run.resume import checkpoint_meta
from trainlib.run.workdir import save_config

pytestmark = pytest.mark.usefixtures("compiled_once")

BOARD = {
    "BoolQ": ("true", "false"),
    "CB": ("entailment", "contradiction", "neutral"),
    "COPA": (0, 1),
    "RTE": ("entailment", "not_entailment"),
    "WiC": ("true", "false"),
    "WSC": ("True", "False"),
    "AX-b": ("entailment", "not_entailment"),
    "AX-g": ("entailment", "not_entailment"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The workdir of a fine-tuning run whose answers differ from input to input."""
    workdir = tmp_path_factory.mktemp("run")
    config = configs.load("st_moe_superglue:sample", data={"source": "sample:copa,cb"})
    config.model.update(d_model=32, d_ff=32, num_heads=2, head_dim=16)
    config.model.update(encoder_blocks=1, decoder_blocks=1, sparse_period=1)
    config.routing.num_experts = 0  # compiles sooner
    config.data.update(cache=str(workdir / "cache"), encoder_length=128)
    config.decoding.update(method="sample", max_length=3, temperature=3.0)
    config.evaluation.split = "validation"
    config.update(batch_size=8, eval_batch_size=8)
    plan = plan_lib.make(config)
    state = plan.abstract_state()
    rng = np.random.default_rng(3)
    flat = {
        name: jax.device_put(
            rng.normal(size=leaf.shape, scale=0.3).astype(leaf.dtype), leaf.sharding
        )
        for name, leaf in checkpoint.to_flat(state).items()
    }
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
    checkpoints.save(2, checkpoint.from_flat(flat, state), checkpoint_meta(config, {}))
    checkpoints.close()
    save_config(config, workdir)
    return workdir


@pytest.fixture
def texts(tmp_path):
    """An input file of 19 lines: no multiple of the batch, and some longer than the encoder."""
    path = tmp_path / "in.jsonl"
    rows = [{"id": n, "inputs": f"copa premise: {'ab' * (5 * n)} {n}"} for n in range(19)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def outcome(capsys, module, *argv) -> tuple[int, str, str]:
    code = run_command(lambda: module.main([str(word) for word in argv]))
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_texts_are_answered_in_order_by_a_run_and_by_its_export(saved, texts, tmp_path, capsys):
    answers = tmp_path / "new" / "out.jsonl"
    flags = [f"--workdir={saved}", f"--input={texts}", f"--output={answers}"]
    code, out, error = outcome(capsys, predict, *flags)
    assert code == 0, error
    asked, found = lines_of(texts), lines_of(answers)
    cut = [len(row["inputs"]) > 127 for row in asked]
    assert [row.items() <= answer.items() for row, answer in zip(asked, found, strict=True)]
    assert [answer["id"] for answer in found] == list(range(19))
    assert [answer["truncated"] for answer in found] == cut
    assert len({answer["prediction"] for answer in found}) > 5
    assert f"{sum(cut)} of 19 inputs (limit 127 tokens)" in out
    assert str(answers) in out
    assert "line 19/19  100%" in out
    code, _, error = outcome(capsys, predict, *flags)
    assert (code, "is there already" in error) == (64, True)

    exported, theirs = tmp_path / "exported", tmp_path / "theirs"
    for folder, names in ((exported, "own"), (theirs, "hf")):
        flags = [f"--workdir={saved}", f"--out={folder}", f"--names={names}"]
        code, _, error = outcome(capsys, export, *flags, "--format=safetensors")
        assert code == 0, error
    again = tmp_path / "again.jsonl"
    flags = [f"--workdir={exported}", f"--input={texts}", f"--output={again}"]
    code, out, error = outcome(capsys, predict, *flags)
    assert code == 0, error
    assert again.read_text() == answers.read_text()
    code, _, error = outcome(capsys, predict, f"--workdir={theirs}", *flags[1:])
    assert (code, "launch.export --names=own" in error) == (64, True)


MISTAKES = [
    (["--input={in}"], 64, ["give --input=FILE.jsonl", "--output=FILE.jsonl"]),
    (["--input={in}", "--output={out}", "--attention=a.png"], 64, ["--attention is for images"]),
    (["--input={in}", "--output={out}", "--json"], 64, ["--json is for images"]),
    (["--input={in}", "--output={out}", "--boxes=a"], 64, ["--boxes is for images"]),
    (["--input={in}", "--output={in}"], 64, ["is there already"]),
    (["--input={none}", "--output={out}"], 65, ["cannot be read", '"inputs"']),
    (["--input={in}", "--output={in}/out"], 74, ["cannot be written"]),
    (["--input={in}", "--output={out}", "--step=7"], 66, ["no step 7", "steps there: 2"]),
    (["--input={in}", "--output={out}", "--config.decoding.method=bean"], 64, ["'beam'"]),
    (
        ["--input={bad}", "--output={out}"],
        65,
        [
            "rows that cannot be used (7 of 9): line 2",
            "line 2 has no field 'inputs'. Did you mean 'input'",
            "line 3 has an empty field 'inputs'",
            "line 4 is not JSON",
            "line 5 has 7 in the field 'inputs'",
            "line 7 holds half of a surrogate pair",
            "line 8 has a field 'prediction' of its own, which the answer would replace",
            "line 9 has a field 'truncated' of its own",
        ],
    ),
]
BAD = (
    '{"inputs": "a"}\n{"input": "b"}\n{"inputs": " "}\n{"inputs": "c"\n{"inputs": 7}\n'
    '{"inputs": "d"}\n{"inputs": "e", "id": "\\ud800"}\n'
    '{"inputs": "f", "prediction": "mine"}\n{"inputs": "g", "truncated": 7}\n'
)


@pytest.mark.parametrize(("argv", "code", "words"), MISTAKES, ids=lambda v: str(v)[-40:])
def test_mistakes_are_told_before_anything_is_answered(
    argv, code, words, saved, texts, tmp_path, capsys, monkeypatch
):
    def refuse(*_):
        raise AssertionError("it would have been compiled")

    monkeypatch.setattr(Answerer, "results", refuse)
    (tmp_path / "bad.jsonl").write_text(BAD)
    places = {name: tmp_path / f"{name}.jsonl" for name in ("in", "out", "bad", "none")}
    flags = [word.format(**places) for word in argv]
    found, _, error = outcome(capsys, predict, f"--workdir={saved}", *flags)
    assert found == code, error
    for word in words:
        assert word in error
    assert not places["out"].exists()


@pytest.mark.slow
def test_blank_lines_keep_their_place_and_cut_answers_are_marked(saved, tmp_path, capsys):
    """Seven lines in, seven out; with a byte-order mark, through gzip and from an array."""
    rows = [{"inputs": f"copa premise: {'ab' * n}", "n": n} for n in range(5)]
    asked = [json.dumps(row) for row in rows]
    content = "\ufeff" + "\n".join([asked[0], "", *asked[1:3], "  ", *asked[3:]]) + "\n"
    places = {"in.jsonl": content.encode(), "in.jsonl.gz": gzip.compress(content.encode())}
    places["in.json"] = json.dumps(rows, indent=1).encode()
    for name, data in places.items():
        (tmp_path / name).write_bytes(data)
        flags = [f"--workdir={saved}", f"--input={tmp_path / name}"]
        code, out, error = outcome(capsys, predict, *flags, f"--output={tmp_path}/{name}.out")
        assert code == 0, error
    lines = (tmp_path / "in.jsonl.out").read_text().splitlines()
    assert [not line for line in lines] == [False, True, False, False, True, False, False]
    found = [json.loads(line) for line in lines if line]
    assert [answer["n"] for answer in found] == list(range(5))
    assert (tmp_path / "in.jsonl.gz.out").read_text().splitlines() == lines
    assert [row["n"] for row in lines_of(tmp_path / "in.json.out")] == list(range(5))
    # Three tokens at the most: bytes of weights that were never trained seldom end by themselves.
    cut = [answer["unfinished"] for answer in found]
    assert f"{sum(cut)} of 5 answers (limit 3 tokens)" in out
    assert any(cut)


def test_an_answer_that_ended_is_not_marked(saved, texts, tmp_path, capsys, monkeypatch):
    """Words as the search gives them: an end, none, and an end in the last place."""
    words = np.asarray([[70, 1, 0], [70, 71, 72], [70, 71, 1]], np.int32)

    def found(self, params, questions):
        return ([(n, {"words": words[n % 3]})] for n, _ in enumerate(questions))

    monkeypatch.setattr(Answerer, "results", found)
    flags = [f"--workdir={saved}", f"--input={texts}", f"--output={tmp_path / 'out.jsonl'}"]
    code, out, error = outcome(capsys, predict, *flags)
    assert code == 0, error
    cut = [answer["unfinished"] for answer in lines_of(tmp_path / "out.jsonl")]
    assert cut == ([False, True, False] * 7)[:19]
    assert f"{sum(cut)} of 19 answers" in out


@pytest.mark.thorough
def test_several_answers_have_scores(saved, tmp_path, capsys, monkeypatch):
    """The best by rank comes first and is the prediction; scores are those of the same words as
    candidates.
    """
    searched, results = [], Answerer.results

    def recorded(self, params, questions):
        for group in results(self, params, questions):
            searched.extend((self, params, *pair) for pair in group)
            yield group

    monkeypatch.setattr(Answerer, "results", recorded)
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked = [{"inputs": f"copa premise: {'ab' * n}", "predictions": "mine"} for n in range(9)]
    flags = [f"--workdir={saved}", f"--input={path}", f"--output={out}"]
    beams = [
        f"--config.decoding.{x}" for x in ("method=beam", "num_return_sequences=3", "num_beams=100")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    code, _, error = outcome(capsys, predict, *flags, *beams)
    assert code == 65, error
    assert "has a field 'predictions' of its own" in error
    counts = Counts()
    line = {"truncated": False, "unfinished": False}
    counts.add([line | {"predictions": [{}] * 3}, None, line | {"predictions": [{}]}], 3)
    assert (counts.answers, counts.short) == (2, 1)
    path.write_text("".join(json.dumps({"inputs": row["inputs"]}) + "\n" for row in asked))
    code, _, error = outcome(capsys, predict, *flags, "--config.decoding.method=greedy", beams[1])
    assert (code, "method 'beam' or 'sample'" in error) == (64, True)
    code, text, error = outcome(capsys, predict, *flags, *beams)
    assert code == 0, error
    found = lines_of(out)
    assert len(found) == 9
    short = sum(len(line["predictions"]) < 3 for line in found)
    assert (f"{short} of 9 lines have fewer than 3 answers" in text) == (short > 0)
    for line in found:
        answers = line["predictions"]
        assert len(answers) == 3 or len(answers) == sum(not a["unfinished"] for a in answers) >= 1
        assert (answers[0]["text"], answers[0]["unfinished"]) == (
            line["prediction"],
            line["unfinished"],
        )
        ranks = [answer["rank_score"] for answer in answers]
        assert ranks == sorted(ranks, reverse=True)
        assert all(answer["score"] <= answer["rank_score"] <= 0 for answer in answers)

    answerer, params, *_ = searched[0]
    by_place = {place: one["words"] for *_, place, one in searched}
    words = np.stack([by_place[place] for place in range(9)])
    questions, expected = [], []
    for n, line in enumerate(found):
        ended = [k for k, answer in enumerate(line["predictions"]) if not answer["unfinished"]]
        ids = tuple(row[: row.tolist().index(EOS)] for row in words[n, ended])
        if ids:
            questions.append(answerer.question(line["inputs"], n))
            questions[-1] = dataclasses.replace(questions[-1], candidates=ids)
            expected.append([line["predictions"][k]["score"] for k in ended])
    assert questions
    for scores, known in zip(answerer.scores(params, questions), expected, strict=True):
        np.testing.assert_allclose(scores, known, atol=2e-2)  # of a model in bfloat16


@pytest.mark.thorough
@pytest.mark.parametrize("kept", [b"", b"{}\n", b"\xff\n", b'{"prediction": 1}\n', b"[]\n"])
def test_damaged_beginnings_are_answered_again(saved, texts, tmp_path, capsys, monkeypatch, kept):
    def found(self, params, questions):
        return ([(n, {"words": np.full(3, 70, np.int32)})] for n, _ in enumerate(questions))

    monkeypatch.setattr(Answerer, "results", found)
    out = tmp_path / "out.jsonl"
    flags = [f"--workdir={saved}", f"--input={texts}", f"--output={out}"]
    assert outcome(capsys, predict, *flags)[0] == 0
    whole = out.read_bytes()
    note = {}
    resume = PartialOutput.resume
    monkeypatch.setattr(
        PartialOutput, "resume", lambda self: note.update(self.origin) or resume(self)
    )
    out.unlink()
    assert outcome(capsys, predict, *flags)[0] == 0
    out.unlink()
    first = whole[: whole.find(b"\n") + 1]
    (tmp_path / "out.jsonl.partial").write_bytes(first + kept + b'{"cut off')
    (tmp_path / "out.jsonl.partial.json").write_text(json.dumps(note))
    code, told, error = outcome(capsys, predict, *flags)
    assert code == 0, error
    assert "going on after 1 of 19 lines" in told
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    "name", [f"out.jsonl{end}" for end in ("", ".partial", ".partial.json", ".partial.early")]
)
def test_answers_are_not_written_through_links(saved, texts, tmp_path, capsys, name):
    other = tmp_path / "document"
    other.write_text("mine")
    (tmp_path / name).symlink_to(other)
    flags = [f"--workdir={saved}", f"--input={texts}", f"--output={tmp_path / 'out.jsonl'}"]
    code, _, error = outcome(capsys, predict, *flags)
    assert code == 64, error
    assert other.read_text() == "mine"


@pytest.mark.thorough
def test_leader_board_files_hold_the_published_test_split(saved, tmp_path, capsys):
    """Ten files; an answer for each line of the test files, with its number, in its own form."""
    flags = [f"--workdir={saved}", f"--write_predictions={tmp_path / 'board'}"]
    code, out, error = outcome(
        capsys,
        evaluate,
        *flags,
        "--config.data.source=sample:superglue,diagnostics",
        "--config.evaluation.split=test",
        "--json",
    )
    assert code == 0, error
    assert "no submission" not in out
    assert "no published answers" in out
    assert json.loads(out.splitlines()[-1])["split"] == "test"
    written = {path.name: lines_of(path) for path in (tmp_path / "board").iterdir()}
    assert set(written) == {f"{name}.jsonl" for name in (*BOARD, "MultiRC", "ReCoRD")}
    for name, labels in BOARD.items():
        lines, asked = written[f"{name}.jsonl"], published(name)
        assert [set(line) for line in lines] == [{"idx", "label"}] * len(lines)
        assert [line["idx"] for line in lines] == [row["idx"] for row in asked]
        assert all(type(line["label"]) is type(labels[0]) for line in lines)
        assert {line["label"] for line in lines} <= set(labels)
    queries = [question["idx"] for row in published("ReCoRD") for question in row["qas"]]
    assert [line["idx"] for line in written["ReCoRD.jsonl"]] == queries
    assert all(isinstance(line["label"], str) for line in written["ReCoRD.jsonl"])

    def numbers(row):
        return row["idx"], [
            (question["idx"], [answer["idx"] for answer in question["answers"]])
            for question in row["passage"]["questions"]
        ]

    lines = written["MultiRC.jsonl"]
    assert [numbers(line) for line in lines] == [numbers(row) for row in published("MultiRC")]
    labels = [
        answer["label"]
        for line in lines
        for question in line["passage"]["questions"]
        for answer in question["answers"]
    ]
    assert set(map(type, labels)) == {int}
    code, _, error = outcome(capsys, evaluate, *flags)
    assert (code, "holds predictions already" in error) == (64, True)


def published(name):
    """The lines of an embedded test file."""
    folder = records.SAMPLES / name
    return lines_of(folder / (f"{name}.jsonl" if name.startswith("AX") else "test.jsonl"))


@pytest.mark.slow
def test_answers_after_a_kill_are_those_without_one(saved, texts, tmp_path, capsys):
    """The process is killed, not asked, when the first answers are there."""
    rows = lines_of(texts) * 40
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    flags = [f"--workdir={saved}", f"--input={texts}", "--config.mesh.data=1"]
    flags += ["--config.mesh.replica=1", "--config.mesh.model=1"]
    partial = resumed.with_name("resumed.jsonl.partial")
    argv = command("predict", *flags, f"--output={resumed}")
    kept = environment(tmp_path / "cache")
    process = subprocess.Popen(
        argv, cwd=ROOT, env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 1200
    while not (partial.is_file() and partial.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not resumed.exists()
    assert 0 < partial.read_bytes().count(b"\n") < len(rows)
    for path in (resumed, whole):
        done = subprocess.run(
            command("predict", *flags, f"--output={path}"),
            cwd=ROOT,
            env=kept,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr
        assert ("going on after" in done.stdout) == (path == resumed)
    assert resumed.read_text() == whole.read_text()
    assert len(lines_of(whole)) == len(rows)
