"""`benchmarks.moe`: what is compared with which target, and the exit code."""

import pytest

from benchmarks import moe
from benchmarks.harness import timing

TIMES = {"index": 104.0, "padded floor": 100.0, "dense floor": 82.0, "dropless": 92.0}


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(arguments, changes)`: (exit code, output) with these CPU times and nothing compiled."""
    for step in ("sparse_step", "padded_step", "dense_step"):
        monkeypatch.setattr(moe, step, lambda *_: lambda: None)
    monkeypatch.setattr(timing, "pin_one_thread", lambda core: core)

    def call(arguments=(), **changes):
        times = TIMES | changes
        monkeypatch.setattr(
            timing, "fastest", lambda candidates, rounds: {n: times[n] for n in candidates}
        )
        code = moe.main(arguments)
        return code, capsys.readouterr().out

    return call


def test_all_targets_met(run):
    code, out = run()
    assert code == 0
    assert out.count("   met") == 6  # the padded floor in four cases, the dense one twice at E = 8
    assert "NOT MET" not in out


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"index": 106.0}, 2),  # 1.06 of the padded floor, at most 1.05 at 8 and 32 experts
        ({"index": 121.0, "dense floor": 95.0}, 4),  # at most 1.20 beyond
        ({"dense floor": 71.0, "dropless": 80.0}, 1),  # 1.46 of dense, at most 1.30
        ({"dropless": 97.0}, 1),  # 1.18, at most 1.15
        ({"index": float("nan")}, 5),
    ],
)
def test_a_missed_target_is_exit_code_1(run, changes, missed):
    code, out = run(**changes)
    assert (code, out.count("NOT MET")) == (1, missed)
    code, again = run(["--report-only"], **changes)
    assert code == 0
    assert f"{missed} of the targets missed" in again
    assert run(["--experts", "128"], index=106.0)[0] == 0
