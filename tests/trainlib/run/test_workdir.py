"""The workdir of a run: which steps stay, and who holds it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from trainlib.config import COMMON, from_schema
from trainlib.errors import ConfigError, NumericAbort
from trainlib.model.weights import Abstract
from trainlib.run.workdir import agree_on_workdir, check_best, evidence_kept, open_workdir
from trainlib.step.train_state import TrainState


@pytest.fixture
def config():
    return from_schema(COMMON)


@pytest.mark.parametrize(("best", "stay"), [("part/a/cross_entropy", 2), ("score/mean", 3)])
def test_the_best_loss_is_the_smallest_and_the_best_score_the_largest(config, tmp_path, best, stay):
    config.checkpoint.update(best=best, keep=1)
    check_best(config, ["accuracy", best])
    with pytest.raises(ConfigError, match=f"Did you mean .{best}."):
        check_best(config, ["accuracy", f"{best}x"])
    checkpoints = open_workdir(config, tmp_path, Abstract(None, {}, {}))
    state = TrainState(np.int32(0), {"w": np.ones(1, np.float32)}, {}, (), {}, np.int32(0))
    for step, value in enumerate([2.0, 1.0, 3.0, 2.0], start=1):
        checkpoints.save(step, state, {}, {best: value})
    checkpoints.close()
    assert checkpoints.steps() == [stay, 4]


def test_a_workdir_stays_held_while_its_run_looks_into_it(config, tmp_path):
    checkpoints = open_workdir(config, tmp_path, Abstract(None, {}, {}))
    agree_on_workdir(tmp_path, checkpoints)
    code = (
        "import sys; from pathlib import Path\n"
        "from trainlib.checkpoint.workdir_lock import WorkdirLock\n"
        "WorkdirLock(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert f"in use by process {os.getpid()}" in refused.stderr
    checkpoints.close()
    assert subprocess.run(command, capture_output=True, timeout=1200).returncode == 0


def test_evidence_that_cannot_be_written_does_not_hide_what_happened(tmp_path):
    said, nowhere = r"went bad.*cannot be written", evidence_kept(tmp_path / "missing")
    with pytest.raises(NumericAbort, match=said), nowhere:
        raise NumericAbort("it went bad", evidence=("it.json", "{}"))
    with pytest.raises(NumericAbort, match=r"^alone$"), evidence_kept(tmp_path):
        raise NumericAbort("alone")
