"""The other processes of a run: what they agree on, at which step they stop, which one failed.

Everything goes through the key-value store of `jax.distributed`, so it works before the first
compilation and while a device is stuck. In a run of one process every function answers at once. N
processes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from trainlib.errors import ConfigError, PeerLost, UserError

_ROOT = "run/"
_FAILED, _HEARD, _ASKED, _AT = "news/failed/", "news/heard/", "news/stop", "news/at/"
_PATIENCE = 600.0  # seconds that slow storage may hold one process back before the first step
_GRACE = 2.0  # seconds in which a process that fails as well may say so itself
_LAST_WORD = 8.0  # seconds that the first process gives the others to learn what happened


class Board:
    """Small texts that every process of the run can read.

    Args:
      client: of `jax.distributed`: `key_value_set` and `key_value_dir_get`.
      index: number of this process.
      count: N.
    """

    def __init__(self, client: Any, index: int, count: int):
        self._client, self.index, self.count = client, index, count

    def post(self, key: str, text: str) -> None:
        """Writes a text; it stays until the run ends."""
        self._client.key_value_set(_ROOT + key, text, allow_overwrite=True)

    def read(self, folder: str) -> dict[str, str]:
        """Every text whose key starts with `folder` (which ends in "/"): key -> text."""
        found = self._client.key_value_dir_get(_ROOT + folder)
        return {key[key.index(_ROOT) + len(_ROOT) :]: text for key, text in found}


def _board() -> Board | None:
    """The board of this process; None when it is alone."""
    if "jax" not in sys.modules:
        return None
    # JAX shares its key-value store with Orbax in no other way. The one private import.
    from jax._src.distributed import global_state

    if global_state.client is None or global_state.num_processes == 1:
        return None
    return Board(global_state.client, global_state.process_id, global_state.num_processes)


def name(index: int, host: str = "") -> str:
    """How messages call a process."""
    return f"process {index}" + (f" ({host})" if host else "")


def listed(items: Sequence[object], most: int = 8) -> str:
    """`0, 1, 2 and 5 more`."""
    text = ", ".join(map(str, items[:most]))
    return text + (f" and {len(items) - most} more" if len(items) > most else "")


# ---------------------------------------------------------------- agreement

_rounds = itertools.count()


def agree(
    facts: Mapping[str, Any],
    error: type[UserError] = ConfigError,
    *,
    board: Board | None = None,
    patience: float = _PATIENCE,
) -> None:
    """Compares facts over all processes; call it in the same order everywhere.

    Args:
      facts: label -> a value that JSON holds.
      error: what a difference is.
      board: None: that of this run.
      patience: seconds to wait for the slowest process.

    Raises:
      UserError: of type `error`, on all processes: names each label that differs, the odd process
        and the values.
      PeerLost: a process did not come to this point in time.
    """
    board = board or _board()
    if board is None:
        return
    folder = f"agree/{next(_rounds)}/"
    told = {"host": socket.gethostname(), "facts": dict(facts)}
    board.post(f"{folder}said/{board.index}", json.dumps(told, default=str))
    if board.index == 0:
        said = _gather(board, f"{folder}said/", patience)
        ordered = [json.loads(said[f"{folder}said/{i}"]) for i in range(board.count)]
        board.post(f"{folder}verdict/0", difference(ordered))
    # The first process names who is missing; the others wait a little longer for its verdict.
    verdict = _gather(board, f"{folder}verdict/", patience + 10, wanted=(0,))[f"{folder}verdict/0"]
    if verdict:
        raise error(verdict)


def _gather(
    board: Board, folder: str, patience: float, wanted: Sequence[int] | None = None
) -> dict[str, str]:
    """Reads `folder` until every wanted process (None: all) has posted its text there."""
    keys = [f"{folder}{i}" for i in (range(board.count) if wanted is None else wanted)]
    deadline = time.monotonic() + patience
    while True:
        found = board.read(folder)
        missing = [key.rsplit("/", 1)[1] for key in keys if key not in found]
        if not missing:
            return found
        if time.monotonic() > deadline:
            raise PeerLost(
                f"Waited {patience:.0f} seconds before the first step for process {listed(missing)}"
                f" of {board.count}, in vain. It may still read its data, or it hangs: look at its "
                "log. The checkpoints are as they were; start all processes again."
            )
        time.sleep(0.05)


def difference(said: Sequence[Mapping[str, Any]]) -> str:
    """One paragraph on what differs between processes, "" when nothing does.

    Args:
      said: of each process, in order: {"host": name, "facts": {label: value}}.
    """
    labels = dict.fromkeys(label for one in said for label in one["facts"])
    lines = []
    for label in labels:
        values = [json.dumps(one["facts"].get(label)) for one in said]
        if len(set(values)) > 1:
            lines.append(f"{label} is {_by_value(values, [one['host'] for one in said])}")
    if not lines:
        return ""
    more = f"; and {len(lines) - 5} more differences" if len(lines) > 5 else ""
    return (
        f"The {len(said)} processes of this run differ, and none has started: "
        f"{'; '.join(lines[:5])}{more}. Give all of them the same command, code and data, then "
        "start them again."
    )


def _by_value(values: Sequence[str], hosts: Sequence[str]) -> str:
    """`0.5 on process 1 (b) and 0.25 on the other 3`: the smaller groups are named."""
    groups = Counter(values).most_common()
    usual = groups[0][0] if groups[0][1] > len(values) / 2 else None
    parts = []
    for value, _ in sorted(groups, key=lambda group: group[1]):
        if value == usual:
            continue
        who = [name(i, hosts[i]) for i, v in enumerate(values) if v == value]
        parts.append(f"{value} on {listed(who, 4)}")
    if usual is not None:
        parts.append(f"{usual} on the other {groups[0][1]}")
    return " and ".join(parts)


# ---------------------------------------------------------------- while it runs


class Link:
    """This process's contact with the others while they train: one thread, one question a second.

    Args:
      board: of the run.
      period: seconds between two questions.
      leave: ends the process; takes the exit code.
    """

    def __init__(
        self, board: Board, *, period: float = 1.0, leave: Callable[[int], Any] = os._exit
    ):
        self._board, self._period, self._leave = board, period, leave
        self._lock, self._wake, self._known = threading.Lock(), threading.Event(), threading.Event()
        self._closed = self._failing = self._asked = False
        self._reached = 0  # the last step whose end this process has come to
        self._frozen: int | None = None  # the step that it goes to before it asks again
        self._target = 0
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def stopping(self, number: int, requested: bool, patience: float = 60.0) -> bool:
        """Whether the run stops after step `number`: the same answer on all processes.

        Every process says how far it can go by itself; all stop at the furthest of these steps, so
        nobody waits in a step that another one never starts.

        Args:
          number: the step that has just ended here.
          requested: whether this process was asked to stop.
          patience: seconds to wait for the others.

        Raises:
          PeerLost: another process did not answer.
        """
        with self._lock:
            self._reached = number
            frozen = self._frozen
        if requested and not self._asked:
            self._asked = True
            self._board.post(_ASKED + "/asked", str(self._board.index))
            self._wake.set()
        if frozen is None or number < frozen:
            return False
        if not self._known.wait(patience):
            raise PeerLost(
                f"This run was asked to stop, and not all of its {self._board.count} processes "
                f"answered within {patience:.0f} seconds. Start the same command again: it goes on "
                "from the last checkpoint."
            )
        return number >= self._target

    def tell(self, text: str, code: int) -> None:
        """Says that this process failed, so that the others stop, name it and end with its exit
        code; returns when they have heard it, at most after some seconds.
        """
        with self._lock:
            self._failing = True
        news = {"time": time.time(), "host": socket.gethostname(), "text": text, "code": code}
        with contextlib.suppress(Exception):  # the first process may be gone already
            self._board.post(f"{_FAILED}{self._board.index}", json.dumps(news))
            self._outlast_others()

    def _outlast_others(self) -> None:
        """The store ends with the first process: that one leaves when all others know why."""
        deadline = time.monotonic() + (_LAST_WORD if self._board.index == 0 else 0)
        while time.monotonic() < deadline and len(self._informed()) < self._board.count:
            time.sleep(0.1)

    def _informed(self) -> set[str]:
        keys = {*self._board.read(_FAILED), *self._board.read(_HEARD)}
        return {key.rsplit("/", 1)[1] for key in keys}

    def close(self) -> None:
        """Ends the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self._wake.wait(self._period if self._frozen is None else self._period / 5)
            self._wake.clear()
            if self._closed:
                return
            try:
                news = self._board.read("news/")
                self._hear_failure(news)
                self._hear_stop(news)
            except Exception:  # the store is gone, and JAX ends this process
                continue

    def _hear_failure(self, news: Mapping[str, str]) -> None:
        told = {k: json.loads(v) for k, v in news.items() if k.startswith(_FAILED)}
        told.pop(f"{_FAILED}{self._board.index}", None)
        if not told or self._failing:
            return
        key = min(told, key=lambda k: told[k]["time"])
        time.sleep(_GRACE)
        with self._lock:
            if self._failing:
                return
            who, first = name(int(key.rsplit("/", 1)[1]), told[key]["host"]), told[key]
            print(
                f"error: {who} of {self._board.count} failed first: {first['text']}\n"
                f"{name(self._board.index, socket.gethostname())} stops as well.",
                file=sys.stderr,
                flush=True,
            )
            self._board.post(f"{_HEARD}{self._board.index}", "")
            self._outlast_others()
            # One code on all processes: a scheduler sees the highest, and must not take bad data
            # for a lost machine and start the run again.
            self._leave(first["code"])

    def _hear_stop(self, news: Mapping[str, str]) -> None:
        if self._known.is_set() or not any(key.startswith(_ASKED) for key in news):
            return
        if self._frozen is None:
            with self._lock:
                self._frozen = self._reached + 1
            self._board.post(f"{_AT}{self._board.index}", str(self._frozen))
            self._wake.set()
            return
        steps = [int(text) for key, text in news.items() if key.startswith(_AT)]
        if len(steps) == self._board.count:
            self._target = max(steps)
            self._known.set()


_link: Link | None = None


@contextlib.contextmanager
def linked() -> Iterator[Link | None]:
    """Keeps contact with the other processes inside; None in a run of one."""
    global _link
    board = _board()
    _link = None if board is None else Link(board)
    try:
        yield _link
    finally:
        if _link is not None:
            _link.close()
        _link = None


def stopping(number: int, requested: bool) -> bool:
    """Whether the run stops after step `number`; see `Link.stopping`."""
    return requested if _link is None else _link.stopping(number, requested)


def tell(text: str, code: int = PeerLost.exit_code) -> None:
    """Says that this process failed; see `Link.tell`."""
    if _link is not None:
        _link.tell(text, code)
