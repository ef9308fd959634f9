"""`benchmarks.device`: what is measured, left out and survived, on a CPU with tiny sizes."""

import json
import os
import time

import jax.numpy as jnp
import pytest

from benchmarks.device import __main__ as command
from benchmarks.device import report, worker
from benchmarks.device.items import ITEMS, Item, Work, shape

MEASURED = {
    "status": "measured",
    "median_seconds": 2e-3,
    "least_seconds": 1e-3,
    "predicted_seconds": 4e-3,
    "how": "ledger",
    "flops": 1e9,
    "peak_flops": 1e12,
    "temporary_bytes": 2**20,
    "compile_seconds": 1.0,
}


class Answers:
    """A worker that has the results ready, and takes `seconds` of a clock for each."""

    def __init__(self, seconds):
        self.now, self.seconds, self.limits = 0.0, seconds, []

    def measure(self, name, limit):
        self.now += self.seconds
        self.limits.append(limit)
        return dict(MEASURED)


def test_what_does_not_fit_is_left_out_and_said(capsys):
    items = [Item(name, 30, lambda tiny: None) for name in ("one", "two", "three")]
    answers = Answers(40)
    results = command.measure_all(answers, items, lambda: 100 - answers.now, 1.0)
    assert [results[name]["status"] for name in results] == ["measured", "measured", "left out"]
    assert "30 s, and 20 s were left" in capsys.readouterr().out
    assert answers.limits == [75, 60]  # 2.5 times what is expected, and no more than is left


def test_ratios_say_what_was_predicted():
    slow = MEASURED | {"median_seconds": 3e-3, "predicted_seconds": 5e-3}
    results = {"ours": slow, "peer": MEASURED, "gone": {"status": "failed", "words": "-"}}
    (said,) = report.ratios(results, {"ours": "peer", "peer": "gone"})
    assert said == "ours takes 1.50 of the time of peer; predicted 1.25."


def test_an_item_is_compiled_and_timed():
    measurement, prediction = worker.measured(Work(jnp.matmul, (shape(8, 8), shape(8, 8))))
    result = measurement | prediction
    assert result["status"] == "measured"
    assert result["flops"] == 2 * 8**3
    assert 0 < result["least_seconds"] <= result["median_seconds"]
    assert result["predicted_seconds"] is None  # nothing is known of this CPU


def test_a_state_is_donated_and_handed_on():
    def step(state, x):
        return state + x, state.sum()

    work = Work(worker.jax.jit(step, donate_argnums=0), (shape(8), shape(8)), state=True)
    assert next(worker.measured(work))["status"] == "measured"


def test_names_are_unique_and_what_stands_beside_is_there():
    names = [item.name for item in ITEMS]
    assert len(set(names)) == len(names)
    assert {item.beside for item in ITEMS} <= {*names, ""}
    known = [item.name for item in ITEMS[:4]]
    assert known[0].startswith("matrix product")  # what has a known limit comes first


def serve(pipe, tiny):
    """A process that crashes in one item and hangs in another."""
    pipe.send({"platform": "cpu"})
    while (name := pipe.recv()) is not None:
        if name == "crashes":
            os._exit(3)
        if name == "hangs":
            time.sleep(600)
        pipe.send({"status": "measured"})
        if name == "is never predicted":
            time.sleep(600)
        pipe.send(None)


@pytest.mark.thorough
def test_an_item_that_crashes_or_hangs_does_not_end_the_others():
    process = command.Worker(True, serve)
    assert process.start(60) == {"platform": "cpu"}
    assert "exit code 3" in process.measure("crashes", 60)["words"]
    assert process.measure("works", 60) == {"status": "measured"}
    assert "not done" in process.measure("hangs", 0.5)["words"]
    assert process.measure("works", 60) == {"status": "measured"}
    late = process.measure("is never predicted", 1)
    assert late == {"status": "measured", "words": "not done in its time"}
    process.stop()


@pytest.mark.thorough
def test_the_command_on_a_cpu(tmp_path, capsys):
    arguments = ["--only=E=8", "--seconds=200", f"--out={tmp_path}"]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert "2 measured, 1 skipped" in out
    page, data = sorted(tmp_path.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert "Tiny sizes" in page.read_text()
    results = json.loads(data.read_text())["results"]
    assert results["bare experts E=8"]["status"] == "measured"
    assert results["grouped products E=8"]["status"] == "skipped"
