"""`benchmarks.reproduce_sparse`: equal FLOPs and parameters, figures of a table, a whole run."""

import json
import math

import jax
import pytest

from benchmarks import reproduce_sparse
from benchmarks.harness import cpu_clock, sweep
from configs.common import load
from moe import describe, plan, train
from moe.text.vocabulary import SentencePieceVocabulary
from trainlib import config as config_lib
from trainlib.errors import ConfigError, DataError
from trainlib.sharding.mesh import make_mesh


@pytest.mark.parametrize("vocabulary", reproduce_sparse.VOCABULARIES.values())
def test_dense_models_are_equal_in_what_they_say(vocabulary):
    facts = {
        kind: describe.describe(
            load.from_flags(f"{reproduce_sparse.CONFIG}:{kind}{vocabulary}", {}).config
        )
        for kind in reproduce_sparse.TITLES
    }
    sparse, flops, params = (facts[kind] for kind in ("sparse", "dense_flops", "dense_params"))
    assert flops["flops_per_example"] == pytest.approx(sparse["flops_per_example"], rel=0.003)
    assert params["params"] == pytest.approx(sparse["params"], rel=0.002)
    assert flops["params"] < 0.6 * sparse["params"]
    assert params["flops_per_example"] > 2 * sparse["flops_per_example"]


@pytest.mark.parametrize(
    ("sparse", "dense", "place"),
    [
        ([(1, 5.0), (2, 3.0), (3, 2.0)], [(1, 4.0), (2, 3.5), (3, 3.0)], 2),
        ([(1, 3.0), (2, 3.6), (3, 2.0)], [(1, 4.0), (2, 3.5), (3, 3.0)], 3),
        ([(1, 3.0), (3, 2.0)], [(1, 4.0), (3, 3.0)], 1),
        ([(1, 3.0), (3, 3.0)], [(1, 4.0), (3, 3.0)], None),  # equal is not below
        ([(2, 3.4), (6, 1.0)], [(1, 4.0), (3, 3.0)], 2),  # against 3.5; 6 is past the other's end
        ([(2, 3.4), (6, 3.2)], [(1, 4.0), (3, 3.0)], None),  # where the other one ends: 3.35
        ([(9, 1.0)], [(1, 4.0), (3, 3.0)], math.nan),  # nothing in common
    ],
)
def test_from_where_on_a_curve_stays_below_another(sparse, dense, place):
    found = reproduce_sparse.pays_from(sparse, dense)
    assert found == pytest.approx(place, nan_ok=True)


def result(kind, seed, loss, **more):
    return {
        "kind": kind,
        "vocabulary": "bytes",
        "seed": seed,
        "steps": 20,
        "tokens_a_step": 100,
        "params": 1234,
        "flops": 5e6,
        "finished": True,
        "unigram": 3.0,
        "tokens": 77,
        "curve": [(10, 3.0), (20, loss)],
        "step_cpu_seconds": 0.5,
        "cpu_seconds": 30.0,
    } | more


def test_differences_are_of_the_seeds_that_both_have(capsys, tmp_path):
    results = [
        result("sparse", 0, 2.0, step_cpu_seconds=2.0),
        result("sparse", 1, 2.2, step_cpu_seconds=2.0),
        result("dense_flops", 0, 2.5),
    ]
    reproduce_sparse.print_table("bytes", results, 3)
    out = capsys.readouterr().out
    assert "2.1000" in out
    assert "no run" in out
    assert "runs of 3 seeds: 2 sparse, 1 dense_flops, 0 dense_params" in out
    assert "sparse minus dense, equal FLOPs, step 20: -0.5000 nats a token (-0.5000)" in out
    assert "by tokens of text: stays below from 2,000 on" in out
    # The sparse one has its first evaluation after 20 s; the dense one ended after 10.
    assert "by CPU seconds of training: not known: they were not evaluated at the same" in out
    assert reproduce_sparse.plot(results, tmp_path).stat().st_size > 1000


def test_runs_that_are_not_finished_are_compared_after_the_last_step_that_all_have(capsys):
    unfinished = {"finished": False, "unigram": None, "tokens": None, "curve": [(10, 2.9)]}
    results = [result("sparse", 0, 2.0), result("dense_flops", 0, 9.0, **unfinished)]
    reproduce_sparse.print_table("bytes", results, 1)
    out = capsys.readouterr().out
    assert "after 10 of 20 steps" in out
    assert "finished: 1" in out
    assert "equal FLOPs, step 10: +0.1000" in out


def test_cpu_time_of_a_step_leaves_out_what_is_rare(tmp_path):
    clock = cpu_clock.CpuClock(tmp_path, {})
    for step in range(1, 21):
        clock.write(step, {"train/loss": 1.0})
        clock.write(step, {"eval/cross_entropy": 1.0})
    clock.close()
    lines = [json.loads(line) for line in (tmp_path / cpu_clock.FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert math.isfinite(cpu_clock.seconds_a_step(tmp_path))
    # An evaluation of 50 s between steps 20 and 30; another start of the run goes on from step 30.
    seconds = {1: {10: 5.0, 20: 7.0, 30: 59.0, 40: 61.0}, 2: {30: 100.0, 40: 102.0}}
    text = "".join(
        json.dumps({"start": start, "step": step, "seconds": value}) + "\n"
        for start, values in seconds.items()
        for step, value in values.items()
    )
    (tmp_path / cpu_clock.FILE).write_text(text)
    assert cpu_clock.seconds_a_step(tmp_path) == pytest.approx(0.2)


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        reproduce_sparse.main([f"--brown={tmp_path / 'none'}"])
    with pytest.raises(ConfigError, match="--vocabularies='words'"):
        reproduce_sparse.main([f"--brown={tmp_path}", "--vocabularies=words"])
    with pytest.raises(ConfigError, match="Did you mean 'dense_flops'"):
        reproduce_sparse.main([f"--brown={tmp_path}", "--kinds=sparse,dense_flop"])


SHORT = (
    "--seeds=1",
    "--steps=2",
    "--config.model.d_model=16",
    "--config.batch_size=2",
    "--config.log_every=1",
)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "brown"
    folder.mkdir()
    names = [f"ca{number:02}" for number in range(4)]
    (folder / "cats.txt").write_text("".join(f"{name} news\n" for name in names))
    for number, name in enumerate(names):
        sentence = f"The/at {'very/ql ' * number}old/jj cat/nn sat/vbd there/rb ./.\n"
        (folder / name).write_text(sentence * 40)
    return folder


@pytest.mark.slow  # three models are compiled, for training and for evaluation
def test_runs_are_measured_drawn_and_then_only_printed(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "make_mesh", lambda *_: make_mesh(devices=jax.devices()[:1]))
    runs = tmp_path / "runs"
    arguments = [
        f"--brown={corpus}",
        f"--runs={runs}",
        "--vocabularies=bytes",
        f"--config.data.cache={tmp_path / 'cache'}",
        *SHORT,
    ]
    assert reproduce_sparse.main([*arguments, "--so-far"]) == 0
    assert "Nothing is evaluated yet" in capsys.readouterr().out
    assert reproduce_sparse.main(arguments) == 0
    results = json.loads((runs / "results.json").read_text())
    assert [r["kind"] for r in results] == list(reproduce_sparse.TITLES)
    assert all(r["finished"] and r["curve"][-1][0] == 2 for r in results)
    assert all(r["cpu_seconds"] > 0 for r in results)
    assert {r["tokens_a_step"] for r in results} == {2 * 141}  # for encoder rows of 128
    capsys.readouterr()
    monkeypatch.setattr(train, "run", None)
    assert reproduce_sparse.main(arguments) == 0
    assert "sparse minus dense, equal FLOPs" in capsys.readouterr().out


def test_pieces_are_trained_once_on_the_training_texts(corpus, tmp_path):
    pytest.importorskip("sentencepiece", reason="needs sentencepiece, extra [text]")
    given = {"data.source": f"brown:{corpus}", "model.vocab_size": "376"}
    path = reproduce_sparse.pieces(tmp_path / "runs", given)
    before = path.stat().st_mtime_ns
    named = reproduce_sparse.pieces(tmp_path / "other", given, train=False)
    assert named.name == path.name
    assert not named.exists()
    assert reproduce_sparse.pieces(tmp_path / "runs", given) == path
    assert path.stat().st_mtime_ns == before
    assert reproduce_sparse.pieces(tmp_path / "runs", given | {"data.holdout": "0.5"}) != path
    with pytest.raises(DataError, match="No vocabulary of 900 pieces"):
        reproduce_sparse.pieces(tmp_path / "runs", given | {"model.vocab_size": "1000"})
    assert SentencePieceVocabulary(str(path), 100).size == 376


def test_a_run_that_was_stopped_is_the_same_with_its_tracker(tmp_path):
    """Trackers are not read back from a workdir, so they cannot tell runs apart."""
    given = {"writers.extra": cpu_clock.NAME}
    run = reproduce_sparse.planned(tmp_path, "sparse", "bytes", 0, given)
    run.workdir.mkdir()
    (run.workdir / "config.json").write_text(config_lib.to_json(run.config))
    sweep.check([run])
    other = reproduce_sparse.planned(tmp_path, "sparse", "bytes", 0, given | {"batch_size": "7"})
    with pytest.raises(ConfigError, match="batch_size: 32 there, 7 asked for"):
        sweep.check([other])
