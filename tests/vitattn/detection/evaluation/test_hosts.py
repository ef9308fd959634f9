"""An evaluation by several processes: each reads its share, all get what one alone gets."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.vitattn.detection.evaluation import pictures
from vitattn.detection.evaluation import gather
from vitattn.detection.evaluation.gather import Collector
from vitattn.detection.input.pipeline import eval_batches

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


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_shares_of_hosts_join_to_the_whole(hosts, monkeypatch):
    """The processes of a run, one after another, with what they hand on joined here."""
    split, found = pictures.pictures(19)
    plan = pictures.plan_of(batch_size=8)
    step = pictures.detector(split, found)
    readers = [
        eval_batches(split, plan.config.data, 8, host, hosts, (pictures.SIDE, pictures.SIDE))
        for host in range(hosts)
    ]
    collectors = [Collector(plan.batch_sharding) for _ in range(hosts)]
    for parts in zip(*readers, strict=True):
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        outputs = jax.device_get(step({}, {}, {"image": whole["image"]}))
        for host, (collector, part) in enumerate(zip(collectors, parts, strict=True)):
            own = np.arange(8).reshape(hosts, -1)[host]
            monkeypatch.setattr(gather, "own_rows", lambda *_, own=own: own)
            collector.add(part, outputs)
    shares = [[np.concatenate(rows) for rows in (c._images, c._detections)] for c in collectors]
    joined = iter([np.concatenate(rows) for rows in zip(*shares, strict=True)])
    monkeypatch.setattr(gather, "gather", lambda rows: next(joined))
    result = collectors[-1].gathered(19)
    np.testing.assert_array_equal(result.found.records, found.records)
    np.testing.assert_array_equal(result.found.classes, found.classes)
    np.testing.assert_allclose(result.found.boxes, found.boxes, atol=1e-4)
    assert not len(result.unread)
    assert not len(result.not_finite)


def test_an_image_that_came_twice_or_not_at_all_is_noticed():
    split, found = pictures.pictures(8)
    plan = pictures.plan_of(batch_size=8)
    (batch,) = eval_batches(split, plan.config.data, 8, 0, 1, (pictures.SIDE, pictures.SIDE))
    outputs = jax.device_get(pictures.detector(split, found)({}, {}, {"image": batch["image"]}))
    collector = Collector(plan.batch_sharding)
    collector.add(batch, outputs)
    with pytest.raises(RuntimeError, match="8 images of 9"):
        collector.gathered(9)
    collector.add(batch, outputs)
    with pytest.raises(RuntimeError, match="16 images of 8"):
        collector.gathered(8)


@pytest.mark.slow
def test_two_processes_measure_what_one_does():
    (alone,) = together(1)
    assert together(2) == [alone, alone]


@pytest.mark.slow
def test_more_processes_than_classes():
    (alone,) = together(1, classes=3)
    assert together(4, classes=3) == [alone] * 4
