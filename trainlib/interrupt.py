"""Stopping on request: the first SIGINT or SIGTERM asks, the second one leaves at once.

Without `jax.distributed` nothing else handles SIGTERM, and a plain process would die with nothing
saved.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

from trainlib.errors import Preempted


class GivenUp(Exception):
    """An evaluation was left off, because the run is to stop: the next start makes up for it."""


def leave_when_asked() -> None:
    """SIGINT and SIGTERM end the process with 75, until a `StopRequest` takes over: before the
    first step there is nothing to save, and after the last one everything is.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    print(f"\n{name}: leaving; no step is under way.", file=sys.stderr, flush=True)
    os._exit(Preempted.exit_code)


class StopRequest:
    """Context manager: `requested` turns true on SIGINT or SIGTERM; a second signal exits with 75.

    Handlers can be set in the main thread alone; elsewhere (tests) this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def give_up(self) -> None:
        """To be called between the batches of an evaluation, which may take longer than a machine
        that was given notice has left.

        Raises:
          GivenUp: the run was asked to stop. Several processes would have to agree on the batch;
            they finish the evaluation.
        """
        import jax  # takes a second, which the help of a command has not

        if self.requested and jax.process_count() == 1:
            raise GivenUp

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested:
            print(f"\n{name} again: leaving at once, without saving.", file=sys.stderr, flush=True)
            os._exit(Preempted.exit_code)
        self.requested = True
        print(
            f"\n{name}: saving after this step, then stopping. Once more leaves at once.",
            file=sys.stderr,
            flush=True,
        )
