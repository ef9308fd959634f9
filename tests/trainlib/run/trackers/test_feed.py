"""Trackers that work, fail, hang and fall behind, and what a run is told of them."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from trainlib.errors import ConfigError
from trainlib.run.metric_writers import Writers, read
from trainlib.run.trackers import feed
from trainlib.run.trackers.feed import Trackers, scalars


class Recording:
    """Notes its calls."""

    def __init__(self, workdir, config):
        self.calls, self.threads = [("made", workdir, config)], {threading.get_ident()}
        made.append(self)

    def write(self, step, metrics):
        self.threads.add(threading.get_ident())
        self.calls.append(("write", step, metrics))

    def summary(self, metrics):
        self.calls.append(("summary", metrics))

    def close(self):
        self.threads.add(threading.get_ident())
        self.calls.append(("close",))


class Without(Recording):
    """Takes no summary."""

    summary = None


class Down(Recording):
    """A server that does not answer."""

    def write(self, step, metrics):
        raise SystemExit("no\x1b[2J server")


made: list[Recording] = []


@pytest.fixture
def said():
    made.clear()
    return []


def trackers(said, *classes, workdir="run", **config):
    named = {f"mine:{cls.__name__}": cls for cls in classes}
    return Trackers(named, Path(workdir), config, said.append)


def test_a_tracker_gets_every_record_in_one_thread(said, tmp_path):
    both = trackers(said, Recording, Without, workdir=tmp_path, steps=3)
    with_files = Writers(tmp_path, tensorboard=False, extra=[both])
    with_files.write(1, "train", {"loss": np.float32(0.5), "note": "text", "nothing": None})
    with_files.write(1, "eval", {"top1": 0.25})
    with_files.close()
    both.summary({"top1": 0.25})
    both.close()
    both.close()
    first, second = made
    assert first.calls == [
        ("made", tmp_path.resolve(), {"steps": 3}),
        ("write", 1, {"train/loss": 0.5}),
        ("write", 1, {"eval/top1": 0.25}),
        ("summary", {"top1": 0.25}),
        ("close",),
    ]
    assert second.calls == [call for call in first.calls if call[0] != "summary"]
    assert len(first.threads) == 1
    assert threading.get_ident() not in first.threads
    assert [r["kind"] for r in read(tmp_path / "metrics.jsonl")] == ["train", "eval"]
    assert both.states() == ["mine:Recording: 2 records", "mine:Without: 2 records"]
    assert not said


def test_a_tracker_that_is_down_is_told_once_and_stops_nothing(said):
    both = trackers(said, Down, Recording)
    for step in range(5):
        both.write(step, "train", {"loss": 1.0})
    both.close()
    down, well = made
    assert down.calls[-1] == ("close",)
    assert [call[0] for call in well.calls] == ["made", *["write"] * 5, "close"]
    assert len(said) == 1
    assert "mine:Down failed in write: SystemExit: no\\x1b[2J server (test_feed.py" in said[0]
    assert both.states()[0].startswith("mine:Down: 0 records, 5 lost (write: SystemExit")


def test_a_tracker_that_cannot_start_is_an_error_and_the_others_are_closed(said):
    class Broken(Recording):
        def __init__(self, workdir, config):
            raise OSError("no key")

    with pytest.raises(ConfigError, match="mine:Broken could not be started: OSError: no key"):
        trackers(said, Recording, Broken)
    assert made[0].calls[-1] == ("close",)


def test_a_tracker_that_hangs_holds_up_neither_steps_nor_end(said, monkeypatch):
    monkeypatch.setattr(feed, "WAITING", 4)
    monkeypatch.setattr(feed, "CLOSING", 0.2)
    release, inside = threading.Event(), threading.Event()

    class Hangs(Recording):
        def write(self, step, metrics):
            inside.set()
            release.wait(60)

    one = trackers(said, Hangs)
    one.write(0, "train", {"loss": 1.0})
    assert inside.wait(60)
    for step in range(1, 11):  # 4 wait, 6 are dropped
        one.write(step, "train", {"loss": 1.0})
    assert "4 records behind" in said[0]
    one.close()
    (state,) = one.states()
    assert "0 records, 10 lost" in state
    release.set()


def test_config_is_plain_data(said):
    """What a tracker is given can be sent anywhere; each has a copy of its own."""
    values = {"model.blocks": [1, 1], "name": "small"}
    both = trackers(said, Recording, Without, **values)
    made[0].calls[0][2]["name"] = "changed"
    assert json.loads(json.dumps(made[1].calls[0][2])) == values
    both.close()


def test_dashboards_get_routers_from_their_own_records_and_alerts_by_name():
    values = {"loss": 2.0, "router/encoder.3/load_0": 0.5, "note": "text"}
    assert scalars("train", values) == {"train/loss": 2.0}
    sampled = scalars("router", {"watched_loss": 2.0, "router/encoder.3/load_0": 0.5})
    assert sampled == {"router/watched_loss": 2.0, "router/encoder.3/load_0": 0.5}
    alert = {"alert": "dead_expert", "where": "decoder.3", "value": 100, "bound": 90, "text": "."}
    assert scalars("alert", alert) == {"alert/dead_expert/decoder.3": 100.0}
    assert scalars("alert", alert | {"where": ""}) == {"alert/dead_expert": 100.0}
