"""What processes agree on and where they stop, with a store in memory and threads as processes."""

import json
import random
import threading
import time

import pytest

from trainlib.errors import ConfigError, DataError, PeerLost
from trainlib.run import peers
from trainlib.run.peers import Board, Link, difference


class Store:
    """The part of JAX's key-value client that a board uses."""

    def __init__(self):
        self.texts, self.lock = {}, threading.Lock()

    def key_value_set(self, key, text, allow_overwrite=False):
        with self.lock:
            assert allow_overwrite or key not in self.texts
            self.texts[key] = text

    def key_value_dir_get(self, folder):
        with self.lock:
            return [(k, v) for k, v in self.texts.items() if k.startswith(folder)]


def boards(count):
    store = Store()
    return [Board(store, index, count) for index in range(count)]


def together(*calls):
    """Runs each call in a thread; returns what each returned or raised."""
    results = [None] * len(calls)

    def work(index):
        try:
            results[index] = calls[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1200)
    return results


def until(true):
    deadline = time.monotonic() + 1200
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)


def said(*facts):
    return [{"host": f"h{i}", "facts": one} for i, one in enumerate(facts)]


def test_nothing_is_said_about_what_is_equal():
    assert difference(said({"a": 1, "b": None}, {"b": None, "a": 1})) == ""


def test_the_odd_one_is_named_with_both_values():
    words = difference(said({"x": 1, "y": 0}, {"x": 1, "y": 0}, {"x": 2, "y": 0}, {"x": 1, "y": 0}))
    assert "x is 2 on process 2 (h2) and 1 on the other 3." in words
    assert "y is" not in words
    two = difference(said({"x": "a"}, {"x": "b"}))
    assert 'x is "a" on process 0 (h0) and "b" on process 1 (h1).' in two
    assert "x is null on process 1" in difference(said({"x": 1}, {}, {"x": 1}))


def test_many_differences_are_cut_short():
    words = difference(said(*({f"k{i}": n for i in range(9)} for n in range(3))))
    assert "; and 4 more differences" in words


def test_all_processes_raise_the_same_error(monkeypatch):
    monkeypatch.setattr(peers, "_rounds", iter([7, 7, 7]))
    calls = [
        lambda b=board: peers.agree({"records": 9 + (b.index == 1)}, DataError, board=b)
        for board in boards(3)
    ]
    errors = together(*calls)
    assert [type(e) for e in errors] == [DataError] * 3
    assert len({str(e) for e in errors}) == 1
    assert "records is 10 on process 1" in str(errors[0])


def test_who_does_not_come_is_named():
    board = boards(3)[0]
    with pytest.raises(PeerLost, match="process 1, 2 of 3"):
        peers.agree({}, ConfigError, board=board, patience=0.2)


def test_a_process_that_is_alone_agrees_and_stops_at_once():
    peers.agree({"x": 1})
    assert peers.stopping(3, True)
    assert not peers.stopping(3, False)
    peers.tell("nobody listens")


@pytest.mark.parametrize("seed", range(6))
def test_all_stop_after_the_same_step_whatever_their_pace(seed):
    """Threads meet in every step, as in a collective, and go on at different paces between."""
    rng = random.Random(seed)
    count, asked_at, asker = 3, rng.randrange(1, 20), rng.randrange(3)
    meet = threading.Barrier(count, timeout=1200)
    paces = [[rng.choice((0.0, 0.001, 0.01)) for _ in range(200)] for _ in range(count)]
    links = [Link(board, period=0.02) for board in boards(count)]

    def loop(index):
        for number in range(1, 200):
            meet.wait()
            time.sleep(paces[index][number])
            if links[index].stopping(number, index == asker and number >= asked_at, patience=1200):
                return number
        return None

    stopped = together(*(lambda i=i: loop(i) for i in range(count)))
    for link in links:
        link.close()
    assert len(set(stopped)) == 1, stopped
    assert stopped[0] >= asked_at


def test_a_process_that_does_not_answer_a_stop_is_told_of():
    link = Link(boards(2)[0], period=0.01)

    def loop():
        for number in range(1, 1000):
            link.stopping(number, True, patience=0.2)
            time.sleep(0.005)

    with pytest.raises(PeerLost, match="not all of its 2 processes answered"):
        loop()
    link.close()


def test_the_first_failure_is_the_one_that_is_named(capsys, monkeypatch):
    monkeypatch.setattr(peers, "_GRACE", 0.05)
    first, second, third = boards(3)
    left = []
    for board, moment, text in ((third, 20.0, "later"), (second, 10.0, "a bug")):
        news = {"time": moment, "host": f"h{board.index}", "text": text, "code": 1}
        board.post(f"news/failed/{board.index}", json.dumps(news))
    link = Link(first, period=0.01, leave=left.append)
    until(lambda: left)
    link.close()
    assert left[0] == 1
    assert "process 1 (h1) of 3 failed first: a bug" in capsys.readouterr().err


def test_the_first_process_leaves_after_all_have_heard(monkeypatch):
    """The store ends with process 0; the other one must have read why by then."""
    monkeypatch.setattr(peers, "_GRACE", 0.05)
    zero, one = boards(2)
    left = []
    links = Link(zero, period=0.01), Link(one, period=0.01, leave=left.append)
    links[0].tell("out of data", 65)
    until(lambda: left)
    assert left[0] == 65
    for link in links:
        link.close()
