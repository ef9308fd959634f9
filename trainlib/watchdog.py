"""A run that is alive but stuck: dumps the stacks of all threads and exits with 76.

JAX notices a process that died, not one that waits for ever: a collective that one process never
enters, storage that never answers. A thread watches the progress of the loop. Time in which this
process itself was stopped (Ctrl-Z, a paused machine) does not count.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from trainlib.errors import PeerLost
from trainlib.progress import Beat, duration

FACTOR = 10  # median steps that one step may take
EXEMPT = 7200.0  # seconds for what has no usual length: compiling, an evaluation, a save


def limit(beat: Beat, least: float) -> float:
    """Seconds that a loop may spend on what it is at."""
    return EXEMPT if beat.exempt else max(least, FACTOR * beat.typical)


class Watchdog:
    """Context manager: watches a loop from a thread.

    Args:
      beat: says how far the loop is; called from the thread.
      least: seconds that every step may take, however short steps are; 0 turns the watch off.
      tell: takes the message before this process ends, to pass it on to others.
      leave: ends the process; takes the exit code.
      clock: seconds.
      poll: seconds between two looks.
    """

    def __init__(
        self,
        beat: Callable[[], Beat],
        least: float,
        *,
        tell: Callable[[str], None],
        leave: Callable[[int], Any] = os._exit,
        clock: Callable[[], float] = time.monotonic,
        poll: float | None = None,
    ):
        self._beat, self._least, self._tell, self._leave = beat, least, tell, leave
        self._clock = clock
        self._poll = poll if poll is not None else min(1.0, max(least, 0.1) / 10)
        self._closed = threading.Event()
        self._seen, self._spent, self._looked = beat(), 0.0, clock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

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
        now, beat = self._clock(), self._beat()
        # A gap much longer than a poll is one in which this process did not run at all.
        passed, self._looked = min(now - self._looked, 2 * self._poll), now
        if beat.mark != self._seen.mark:
            self._spent = 0.0
        else:
            self._spent += passed
        self._seen = beat
        return (beat, self._spent) if self._spent > limit(beat, self._least) else None

    def _stuck(self, beat: Beat, seconds: float) -> None:
        usual = f"; a step usually takes {beat.typical:.3g} s" if beat.typical else ""
        text = (
            f"Stuck: {beat.doing} has not ended for {duration(seconds)} (stuck_after="
            f"{self._least:g}{usual})."
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
