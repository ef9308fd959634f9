"""An evaluation by several processes: each reads its share, all get what one alone gets."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")


def together(count: int, classes: int = 4) -> list[str]:
    """Runs `count` processes with eight devices in all; returns the digest that each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), port, str(index), str(count), str(classes)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    ended = [process.communicate(timeout=600) for process in started]
    for process, (_, error) in zip(started, ended, strict=True):
        assert process.returncode == 0, error
    return [out.split()[-1] for out, _ in ended]


@pytest.mark.thorough
def test_two_processes_measure_what_one_does():
    (alone,) = together(1)
    assert together(2) == [alone, alone]


@pytest.mark.slow
def test_more_processes_than_classes():
    (alone,) = together(1, classes=3)
    assert together(4, classes=3) == [alone] * 4
