"""A run that is alive but stuck: dumps the stacks of all threads and exits with 76.

JAX notices a process that died, not one that waits for ever: a device that never starts, a
collective that one process never enters, storage that never answers. A thread watches from the
start of the command to its end, with a limit for each phase. Time in which this process itself was
stopped (Ctrl-Z, a paused machine) does not count.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainlib.errors import PeerLost
from trainlib.run.progress import Beat, duration

FACTOR = 10  # median steps that one step may take
STEP = "step"
# Seconds for the phases that have no usual length; `least` raises them when it is more. A state of
# 3 TB takes 50 minutes at 1 GB/s; the largest step took 5 minutes to compile, GPUs tune for longer.
LIMITS = {
    "connecting": 900.0,  # beside --start_timeout
    "starting": 7200.0,  # opening the data, restoring, and what follows the last step
    "compiling": 3600.0,
    "saving": 7200.0,
    "evaluating": 7200.0,
}


def limit(beat: Beat, least: float, limits: Mapping[str, float] = LIMITS) -> float:
    """Seconds that a run may spend on what it is at."""
    return max(least, FACTOR * beat.typical if beat.phase == STEP else limits[beat.phase])


class Watchdog:
    """Context manager: watches a run from a thread.

    Args:
      least: seconds that every step may take, however short steps are; 0 turns the watch off.
      tell: takes the message before this process ends, to pass it on to others.
      leave: ends the process; takes the exit code.
      limits: phase -> seconds.
      clock: seconds.
      poll: seconds between two looks.
    """

    def __init__(
        self,
        least: float,
        *,
        tell: Callable[[str], None],
        leave: Callable[[int], Any] = os._exit,
        limits: Mapping[str, float] = LIMITS,
        clock: Callable[[], float] = time.monotonic,
        poll: float | None = None,
    ):
        self._least, self._tell, self._leave = least, tell, leave
        self._limits, self._clock = limits, clock
        self._poll = poll if poll is not None else min(1.0, max(least, 0.1) / 10)
        self._closed = threading.Event()
        self.enter("starting", "the start of the run")
        self._seen, self._spent, self._looked = self._source, 0.0, clock()
        self._mark = 0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, phase: str, doing: str) -> None:
        """Says what the run is at, outside its loop: one of LIMITS, and in words."""
        beat = Beat(0, doing, phase, 0.0)
        self._source: Callable[[], Beat] = lambda: beat

    @contextlib.contextmanager
    def follow(self, beat: Callable[[], Beat]) -> Iterator[None]:
        """Around a loop: `beat` says how far it is, and is called from the thread."""
        self._source = beat
        try:
            yield
        finally:
            self.enter("starting", "the end of the run")

    def __enter__(self) -> Watchdog:
        if self._least:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._least:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self._poll):
            late = self.look()
            if late is not None:
                self._stuck(*late)
                return

    def look(self) -> tuple[Beat, float] | None:
        """Looks once; returns what took too long and how many seconds so far, or None."""
        now, source = self._clock(), self._source
        beat = source()
        # A gap much longer than a poll is one in which this process did not run at all.
        passed, self._looked = min(now - self._looked, 2 * self._poll), now
        if source is not self._seen or beat.mark != self._mark:
            self._spent = 0.0
        else:
            self._spent += passed
        self._seen, self._mark = source, beat.mark
        late = self._spent > limit(beat, self._least, self._limits)
        return (beat, self._spent) if late else None

    def _stuck(self, beat: Beat, seconds: float) -> None:
        usual = f", a step usually takes {beat.typical:.3g} s" if beat.typical else ""
        most = duration(limit(beat, self._least, self._limits))
        text = (
            f"Stuck: {beat.doing} has not ended for {duration(seconds)} (at most {most} for "
            f"{beat.phase}; stuck_after={self._least:g}{usual})."
        )
        print(f"\n{text} What every thread is doing:\n", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=2, all_threads=True)
        print(
            f"\nerror: {text} The usual causes are another process that stopped, storage or a data "
            "source that does not answer, and a device that hangs. Start the same command again: "
            "it goes on from the last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        self._tell(text)
        self._leave(PeerLost.exit_code)


_watchdog: Watchdog | None = None


@contextlib.contextmanager
def watching(
    least: float, tell: Callable[[str], None], limits: Mapping[str, float] = LIMITS
) -> Iterator[None]:
    """Watches what is done inside; see `Watchdog`."""
    global _watchdog
    with Watchdog(least, tell=tell, limits=limits) as _watchdog:
        try:
            yield
        finally:
            _watchdog = None


def enter(phase: str, doing: str) -> None:
    """Says what this run is at, where it is watched; see `Watchdog.enter`."""
    if _watchdog is not None:
        _watchdog.enter(phase, doing)


def follow(beat: Callable[[], Beat]) -> contextlib.AbstractContextManager[None]:
    """Around a loop, where it is watched; see `Watchdog.follow`."""
    return contextlib.nullcontext() if _watchdog is None else _watchdog.follow(beat)
