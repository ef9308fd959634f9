"""Checkpoints of several processes: each writes its shards, any number of them reads, all agree."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainlib.checkpoint.states import equal, make, shapes
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.sharding.mesh import make_mesh

WORKER = Path(__file__).with_name("worker.py")


def together(task: str, directory: Path, count: int) -> list[str]:
    """Runs `count` processes with eight devices in all; returns what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(WORKER), task, str(directory), port]
    started = [
        subprocess.Popen(
            [*command, str(index), str(count)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    ended = [process.communicate(timeout=1200) for process in started]
    for process, (_, error) in zip(started, ended, strict=True):
        assert process.returncode == 0, error
    return [out + error for out, error in ended]


@pytest.mark.slow
def test_processes_save_together_and_others_read_it(tmp_path):
    together("save", tmp_path, 2)
    opened = Checkpoints(tmp_path)
    assert opened.steps() == [1, 2]
    assert dict(opened.manifest(2).mesh) == {"replica": 1, "data": 4, "model": 2}
    for step in (1, 2):
        expected, _ = make(make_mesh(1, 8), width=1024, seed=step)
        assert equal(opened.restore(step, shapes(make_mesh(1, 8), width=1024)), expected)
    for count in (4, 2):
        assert all("resumed from 2" in text for text in together("resume", tmp_path, count))
    # The shards of the second process rot: both processes go back to the same older step.
    for path in (tmp_path / "2" / "ocdbt.process_1").rglob("d/*"):
        content = bytearray(path.read_bytes())
        for place in range(50, len(content), 100):
            content[place] ^= 1
        path.write_bytes(content)
    texts = together("resume", tmp_path, 2)
    assert all("resumed from 1" in text for text in texts)
    assert "was set aside" in " ".join(texts[0].split())
    assert "warning" not in texts[1]
