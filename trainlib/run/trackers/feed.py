"""Feeds trackers from a thread of their own, so that one that is slow, down or broken neither stops
the training nor holds it up.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from trainlib.errors import shown
from trainlib.run.trackers.tracker import Tracker, failed, reason

WAITING = 1000  # records that a tracker may be behind; later ones are dropped
CLOSING = 30.0  # seconds that the end of a run waits for what is still to be sent

_Call = Callable[[Tracker], object]


class Feed:
    """One tracker, made, called and closed in one thread.

    Args:
      name: `module:Class`.
      make: -> the tracker.

    Attributes:
      written: records that the tracker took.
      lost: records that it did not take, because it failed or was too far behind.
      first: why, the first time; "" as long as nothing was lost.

    Raises:
      ConfigError: it could not be made.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]):
        self.name, self.written, self.lost, self.first = name, 0, 0, ""
        self._calls: queue.SimpleQueue[tuple[str, _Call] | None] = queue.SimpleQueue()
        made: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._work, args=(make, made), name=f"tracker {name}", daemon=True
        )
        self._thread.start()
        while self._thread.is_alive() and not made.done():
            # In short waits, so that Ctrl-C reaches the main thread meanwhile.
            with contextlib.suppress(TimeoutError):
                made.exception(timeout=0.2)
        error = made.exception()
        if error is not None:
            raise failed(name, "could not be started", error) from error

    def _work(self, make: Callable[[], Tracker], made: Future[None]) -> None:
        try:
            tracker = make()
        except BaseException as error:
            made.set_exception(error)
            return
        made.set_result(None)
        while (entry := self._calls.get()) is not None:
            what, call = entry
            try:
                call(tracker)
                self.written += what == "write"
            except BaseException as error:  # even SystemExit: the thread has to live on
                self._fail(f"{what}: {reason(error)}", what == "write")

    def _fail(self, why: str, counts: bool) -> None:
        self.lost += counts
        self.first = self.first or why

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Has the thread write a record; drops it if the tracker is too far behind."""
        if self._calls.qsize() >= WAITING:
            self._fail(f"write: it is {WAITING:,} records behind", True)
        else:
            self._calls.put(("write", lambda tracker: tracker.write(step, metrics)))

    def summary(self, metrics: dict[str, float]) -> None:
        """Has the thread hand over the last figures, if the tracker takes any."""

        def call(tracker: Any) -> None:
            take = getattr(tracker, "summary", None)
            if callable(take):
                take(metrics)

        self._calls.put(("summary", call))

    def end(self) -> None:
        """Has the thread close the tracker after what is waiting, and end."""
        self._calls.put(("close", lambda tracker: tracker.close()))
        self._calls.put(None)

    def join(self, seconds: float) -> None:
        """Waits for the end; what the tracker has not taken by then is lost."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._fail(f"close: it had not ended {CLOSING:g} s after the run", False)
            # Two entries are the call of `close` and the end of the queue.
            self.lost += max(0, self._calls.qsize() - 2)

    @property
    def state(self) -> str:
        """What became of the records, for a summary."""
        if not self.first:
            return f"{self.name}: {self.written:,} records"
        return f"{self.name}: {self.written:,} records, {self.lost:,} lost ({self.first})"


class Trackers:
    """All trackers of a run, as a writer of metrics.

    Args:
      classes: `module:Class` -> class, of `tracker.classes`.
      workdir: of the run.
      config: of the run, as plain data.
      warn: prints a warning; called from the thread that writes.

    Raises:
      ConfigError: one could not be made; those before it are closed.
    """

    def __init__(
        self,
        classes: Mapping[str, Callable[..., Tracker]],
        workdir: Path,
        config: Mapping[str, Any],
        warn: Callable[[str], None],
    ):
        self._warn, self._warned, self._closed = warn, set[str](), False
        self._feeds: list[Feed] = []
        try:
            for name, cls in classes.items():
                make = functools.partial(cls, workdir.resolve(), dict(config))
                self._feeds.append(Feed(name, make))
        except BaseException:
            self.close()
            raise

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Hands a record on: the numbers in it, as `kind/name`."""
        metrics = scalars(kind, values)
        for feed in self._feeds:
            # Each has a dictionary of its own, which it may change.
            feed.write(int(step), dict(metrics))
        self._tell()

    def summary(self, values: Mapping[str, Any]) -> None:
        """Hands the figures of a finished run to the trackers that have a method for them."""
        for feed in self._feeds:
            feed.summary(numbers(values))

    def close(self) -> None:
        """Closes all trackers, and waits a limited time for them. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for feed in self._feeds:
            feed.end()
        until = time.monotonic() + CLOSING
        for feed in self._feeds:
            feed.join(until - time.monotonic())
        self._tell()

    def states(self) -> list[str]:
        """For each tracker, how many records it took and what was lost."""
        return [feed.state for feed in self._feeds]

    def _tell(self) -> None:
        """Warns of a tracker the first time that it fails."""
        for feed in self._feeds:
            if feed.first and feed.name not in self._warned:
                self._warned.add(feed.name)
                self._warn(
                    f"the tracker {shown(feed.name)} failed in {feed.first}. Training continues; "
                    "metrics.jsonl has everything, and the summary counts what the tracker lost."
                )


def scalars(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record as dashboards name them, `kind/name`.

    Names that begin with a kind of their own, `router/`, are those of a record of this kind, and
    are left out of others: hundreds of series cost a dashboard more than a step of a large model
    costs its host. An alert is one series for what it is and where, `alert/dead_expert/decoder.3`.
    """
    if kind == "alert":
        name = "/".join(str(values[part]) for part in ("alert", "where") if values[part])
        return numbers({name: values["value"]}, "alert/")
    own = {name: v for name, v in values.items() if name.startswith("router/")}
    others = {name: v for name, v in values.items() if name not in own}
    return numbers(others, f"{kind}/") | (numbers(own) if kind == "router" else {})


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The values that are numbers (host or device scalars), as floats."""
    return {
        f"{prefix}{name}": float(value)
        for name, value in values.items()
        if value is not None and not isinstance(value, str | bool)
    }
