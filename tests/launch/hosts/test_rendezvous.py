"""The meeting before the start, with threads as processes."""

import socket
import threading
import time
import types

import pytest

from launch.hosts import rendezvous
from launch.hosts.rendezvous import meet
from tests.launch.hosts.simulated import free_port
from trainlib.errors import ConfigError, PeerLost

LONG = 1200.0  # seconds: no test waits so long, however busy the machine is


def met(*processes, patience=LONG, address=None):
    """Each process is (count, index); returns what each raised, or None."""
    address = address or f"localhost:{free_port()}"
    results = [None] * len(processes)

    def work(place, count, index):
        try:
            meet(address, count, index, patience=patience, say=lambda text: None)
        except Exception as error:
            results[place] = error

    threads = [
        threading.Thread(target=work, args=(place, *who)) for place, who in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    return results


def test_five_meet_in_any_order_and_the_port_is_free_again():
    address = f"localhost:{free_port()}"
    for _ in range(2):
        assert met(*((5, i) for i in (3, 1, 4, 0, 2)), address=address) == [None] * 5


def at_each_admission(monkeypatch, act):
    """Calls `act` with how many connections process 0 has taken in so far."""
    admit, count = rendezvous._admit, iter(range(1, 100))

    def admitted(*arguments):
        admit(*arguments)
        act(next(count))

    monkeypatch.setattr(rendezvous, "_admit", admitted)


def test_those_that_are_missing_are_named_to_all(monkeypatch):
    """Patience ends as soon as process 3 is there."""
    clock = types.SimpleNamespace(now=0.0)
    clock.monotonic, clock.sleep = lambda: clock.now, time.sleep
    monkeypatch.setattr(rendezvous, "time", clock)
    at_each_admission(monkeypatch, lambda count: setattr(clock, "now", LONG + 1))
    errors = met((5, 0), (5, 3))
    assert [type(error) for error in errors] == [PeerLost, PeerLost]
    for error in errors:
        assert "2 of 5 processes came" in str(error)
        assert "processes 1, 2, 4" in str(error)


def test_two_with_one_number_are_refused():
    errors = met((3, 0), (3, 1), (3, 1))
    assert {type(error) for error in errors} == {ConfigError}
    assert all("two processes say that they are number 1" in str(error).lower() for error in errors)


def test_two_counts_are_refused():
    errors = met((2, 0), (3, 1))
    assert [type(error) for error in errors] == [ConfigError, ConfigError]
    assert "started for 3 processes, and process 0 for 2" in str(errors[1])


def test_an_unknown_host_and_a_closed_port_are_told_apart():
    unknown, closed = "no-such-host.invalid:8476", f"localhost:{free_port()}"
    (error,) = met((2, 1), patience=0.5, address=unknown)
    assert isinstance(error, ConfigError)
    assert "does not know a host of that name" in str(error)
    (error,) = met((2, 1), patience=0.5, address=closed)
    assert isinstance(error, PeerLost)
    assert "could not be reached" in str(error)


def test_a_taken_port_is_refused():
    with (
        socket.create_server(("127.0.0.1", free_port())) as taken,
        pytest.raises(ConfigError, match="another program uses it"),
    ):
        meet(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, patience=1)


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\n", b"[1]\n", b"x" * 5000, b""])
def test_a_stranger_at_the_port_is_left_alone(noise):
    """A port scanner or a browser must neither end the run nor be counted."""
    port = free_port()

    def others():
        _knock(port, noise)
        meet(f"localhost:{port}", 2, 1, patience=LONG)

    thread = threading.Thread(target=others)
    thread.start()
    meet(f"localhost:{port}", 2, 0, patience=LONG, say=lambda text: None)
    thread.join(LONG)


def _knock(port, noise):
    """Says something at the port, once somebody listens there, and hangs up."""
    deadline = time.monotonic() + LONG
    with rendezvous._reach("127.0.0.1", port, deadline, LONG, print) as connection:
        connection.sendall(noise)


def test_a_process_that_was_started_again_takes_its_place(monkeypatch):
    """Its first self has hung up while process 0 still waits for others."""
    port, two_were_there = free_port(), threading.Event()
    at_each_admission(monkeypatch, lambda count: count == 2 and two_were_there.set())

    def first_self_and_third():
        _knock(port, b'{"process": 1, "processes": 3, "host": "a"}\n')
        meet(f"localhost:{port}", 3, 2, patience=LONG)

    def next_self():
        """Comes after the third: then all numbers were there once."""
        two_were_there.wait(LONG)
        meet(f"localhost:{port}", 3, 1, patience=LONG)

    threads = [threading.Thread(target=target) for target in (first_self_and_third, next_self)]
    for thread in threads:
        thread.start()
    meet(f"localhost:{port}", 3, 0, patience=LONG, say=lambda text: None)
    for thread in threads:
        thread.join(LONG)
