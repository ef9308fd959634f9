"""The meeting of all processes of a run before `jax.distributed` starts: who is missing is named.

Process 0 listens at the coordinator's port until every process has said its number, tells all of
them to go on, and frees the port for JAX. JAX alone would wait for minutes and then name nobody,
and would let two jobs share a port.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import sys
import time
from collections.abc import Callable, Collection

from trainlib.errors import ConfigError, PeerLost
from trainlib.run.peers import listed, name

_GO = "go"
_LONGEST = 4096  # bytes of one message; anything longer is not ours
_SAY = 15.0  # seconds after which a waiting process says what it waits for


def meet(
    address: str,
    count: int,
    index: int,
    *,
    patience: float,
    say: Callable[[str], None] | None = None,
) -> None:
    """Returns when all processes are there.

    Args:
      address: HOST:PORT of process 0.
      count: processes in all.
      index: number of this one.
      patience: seconds to wait for the others.
      say: takes a line on what is waited for; None: standard error.

    Raises:
      ConfigError: the host's name is unknown, the port is taken, two processes have one number, or
        they were told different counts.
      PeerLost: some process did not come in time; names those that are missing.
    """
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    deadline = time.monotonic() + patience
    if index == 0:
        _receive(host, int(port), count, deadline, patience, say)
    else:
        _report(host, int(port), count, index, deadline, patience, say)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    local = loopback(host)
    try:
        if local:
            return socket.create_server((local, port), backlog=1024)
        dual = family == socket.AF_INET6
        return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=dual)
    except OSError as error:
        reason = {
            errno.EADDRINUSE: "another program uses it (perhaps a run that has not ended)",
            errno.EACCES: "ports below 1024 belong to the system",
        }.get(error.errno or 0, error.strerror)
        raise ConfigError(
            f"Process 0 cannot listen at port {port} of this machine: {reason}. End that program, "
            "or give all processes another --coordinator=HOST:PORT."
        ) from None


def loopback(host: str) -> str:
    """The address of this machine alone that `host` stands for, or "" when others can reach it."""
    return {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "::1": "::1"}.get(host, "")


def _receive(
    host: str,
    port: int,
    count: int,
    deadline: float,
    patience: float,
    say: Callable[[str], None],
) -> None:
    here: dict[int, tuple[str, socket.socket]] = {}
    next_word = time.monotonic() + _SAY
    with contextlib.ExitStack() as opened:
        server = opened.enter_context(_listen(host, port))
        server.settimeout(0.5)
        try:
            while len(here) < count - 1 or _dropped(here):
                if time.monotonic() > deadline:
                    raise PeerLost(_missing(here, count, patience))
                if time.monotonic() > next_word:
                    next_word += _SAY
                    say(f"waiting for {_numbers(here, count)} of {count} at port {port} ...")
                with contextlib.suppress(TimeoutError):
                    connection = opened.enter_context(server.accept()[0])
                    _admit(connection, here, count)
        except (ConfigError, PeerLost) as error:
            for _, connection in here.values():
                _send(connection, {"error": str(error), "code": type(error).exit_code})
            raise
        for _, connection in here.values():
            _send(connection, {_GO: True})


def _admit(
    connection: socket.socket, here: dict[int, tuple[str, socket.socket]], count: int
) -> None:
    """Takes one process in; what does not speak our language is left alone."""
    message = _read(connection, time.monotonic() + 2.0)
    if not message or not isinstance(message.get("process"), int):
        return
    number, host, theirs = message["process"], str(message.get("host")), message.get("processes")
    problem = ""
    if theirs != count:
        problem = (
            f"{name(number, host)} was started for {theirs} processes, and process 0 for {count}"
        )
    elif number == 0 or (number in here and _connected(here[number][1])):
        other = here[number][0] if number in here else socket.gethostname()
        problem = f"two processes say that they are number {number}: on {other} and on {host}"
    if problem:
        error = ConfigError(
            f"{problem[0].upper()}{problem[1:]}. Each of the {count} processes "
            "needs a --process of its own, 0 and up, and the same --processes."
        )
        _send(connection, {"error": str(error), "code": error.exit_code})
        raise error
    here[number] = host, connection


def _connected(connection: socket.socket) -> bool:
    """Whether the other side still waits; one that was started again has left its old line."""
    connection.settimeout(0.0)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(5.0)


def _dropped(here: dict[int, tuple[str, socket.socket]]) -> bool:
    """Strikes out the processes that have hung up; says whether there were any."""
    gone = [number for number, (_, connection) in here.items() if not _connected(connection)]
    for number in gone:
        del here[number]
    return bool(gone)


def _numbers(here: Collection[int], count: int) -> str:
    missing = [i for i in range(1, count) if i not in here]
    return f"process{'es' if len(missing) > 1 else ''} {listed(missing)}"


def _missing(here: Collection[int], count: int, patience: float) -> str:
    return (
        f"{len(here) + 1} of {count} processes came within {patience:.0f} seconds; missing: "
        f"{_numbers(here, count)}. Start the same command on every host (on a TPU slice: "
        "--worker=all), look at the logs of the missing ones, and see that they can reach this "
        "port. --start_timeout=SECONDS waits longer."
    )


def _report(
    host: str,
    port: int,
    count: int,
    index: int,
    deadline: float,
    patience: float,
    say: Callable[[str], None],
) -> None:
    message = {"process": index, "processes": count, "host": socket.gethostname()}
    with _reach(host, port, deadline, patience, say) as connection:
        _send(connection, message)
        # Process 0 counts its own patience and names who is missing; leave it the first word.
        answer = _read(connection, deadline + 5)
    if answer is None:
        raise PeerLost(
            f"Process 0 at {host}:{port} went away before all {count} processes were there. Look "
            "at its log, then start all processes again."
        )
    if "error" in answer:
        kind = ConfigError if answer.get("code") == ConfigError.exit_code else PeerLost
        raise kind(f"Process 0 says: {answer['error']}")


def _reach(
    host: str, port: int, deadline: float, patience: float, say: Callable[[str], None]
) -> socket.socket:
    next_word = time.monotonic() + _SAY
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5)
            # A port of this machine that nobody listens at can be given to the caller itself.
            if connection.getsockname() != connection.getpeername():
                return connection
            connection.close()
            problem: OSError = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        except OSError as error:
            problem = error
        if time.monotonic() > deadline:
            break
        if time.monotonic() > next_word:
            next_word += _SAY
            say(f"waiting for process 0 at {host}:{port} ({problem.strerror or problem}) ...")
        time.sleep(0.2)
    if isinstance(problem, socket.gaierror):
        raise ConfigError(
            f"--coordinator={host}:{port}: this machine does not know a host of that name "
            f"({problem.strerror}). Give the name or address of the machine that runs process 0, "
            "as the others reach it."
        )
    raise PeerLost(
        f"Process 0 could not be reached at {host}:{port} within {patience:.0f} seconds "
        f"({problem.strerror or problem}). See that it was started, that the port is the same "
        "everywhere, and that no firewall closes it. --start_timeout=SECONDS waits longer."
    )


def _send(connection: socket.socket, message: dict) -> None:
    with contextlib.suppress(OSError):  # who has gone hears nothing
        connection.sendall(json.dumps(message).encode() + b"\n")


def _read(connection: socket.socket, deadline: float) -> dict | None:
    """One message, or None when the other side went away, is too slow or says something else."""
    text = b""
    while not text.endswith(b"\n") and len(text) < _LONGEST:
        connection.settimeout(max(0.05, deadline - time.monotonic()))
        try:
            piece = connection.recv(_LONGEST)
        except OSError:
            return None
        if not piece:
            return None
        text += piece
    try:
        message = json.loads(text)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
