"""Several processes answer as one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moe.decoding.waiting import in_order
from tests.launch.hosts.simulated import environment, free_port
from tests.moe.decoding.test_continuous import answerer_of, make_plan, mixed

WORKER = Path(__file__).with_name("worker.py")


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one(tmp_path):
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), port, str(index), "2"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    plan, weights = make_plan()
    expected = [
        one["words"].ravel().tolist()
        for one in in_order(answerer_of(plan).results(weights, mixed()))
    ]
    for process in processes:
        out, error = process.communicate(timeout=1200)
        assert process.returncode == 0, error
        assert json.loads(out.splitlines()[-1]) == expected
