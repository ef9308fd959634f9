"""Stopping on request. In a loop that can save, the first SIGINT or SIGTERM asks and the second one
leaves at once; elsewhere the first one leaves.

Without `jax.distributed` nothing else handles SIGTERM, and a plain process would die with nothing
saved. A reader of the output that goes away (`| head`), and a full disk below it, ask a loop that
can save in the same way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType

from trainlib.checkpoint import workdir_lock as lock
from trainlib.errors import Interrupted, Preempted, output_closed

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Python runs handlers between its own instructions, and a compilation is one of them that takes
# minutes: a thread waits this long for the handler, and so long for what it makes clean up.
_UNHEARD, _CLEANING = 1.0, 20.0


class GivenUp(Exception):
    """An evaluation was left off, because the run is to stop: the next start makes up for it."""


class _Leaving:
    """The handler of a command where no loop can save: raises `Interrupted` in the main thread, or
    ends the process itself where the main thread does not get to that.

    Args:
      code: exit code; None: 128 + the signal, after what is under way has cleaned up. With a code
        the process ends at once: there is nothing to clean up.
      words: what is said of it.
    """

    def __init__(self, code: int | None = None, words: str = "stopped."):
        self._code, self._words = code, words
        self._heard, self._lost = threading.Event(), threading.Event()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._code is not None or self._heard.is_set():
            self.leave(number)
        self._heard.set()
        raise Interrupted(number)

    def leave(self, number: int) -> None:
        """Ends the process, and those that it started."""
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):
            print(f"\n{name}: {self._words}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            lock.release_all()
        end_children()
        os._exit(128 + number if self._code is None else self._code)

    def unraisable(self, found: sys.UnraisableHookArgs) -> None:
        """Hears what Python ignores: where the signal came while a destructor or the collection of
        garbage ran, the exception ended there, and the signal has to come again.
        """
        if isinstance(found.exc_value, Interrupted):
            self._lost.set()
        else:
            sys.__unraisablehook__(found)

    def watch(self, pipe: int) -> None:
        """Sees to it that a signal is followed; `pipe` gives its number as soon as it comes."""
        while number := os.read(pipe, 1):
            if number[0] in SIGNALS and signal.getsignal(number[0]) is self:
                if self._heard.wait(_UNHEARD) and self._lost.wait(_CLEANING):
                    self._lost.clear()
                    self._heard.clear()
                    os.kill(os.getpid(), number[0])
                elif signal.getsignal(number[0]) is self:
                    self.leave(number[0])


def end_children() -> None:
    """Ends the worker processes that this one started, which would wait for work for ever."""
    started = sys.modules.get("multiprocessing")
    for child in started.active_children() if started else ():
        child.terminate()


def leave_when_asked(code: int | None = None, words: str = "stopped.") -> None:
    """SIGINT and SIGTERM end the command, until a `StopRequest` takes over.

    Args:
      code: exit code; None: 128 + the signal, the convention of shells.
      words: what is said of it on standard error.
    """
    handler = _Leaving(code, words)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=handler.watch, args=(reading,), name="signals", daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, handler)
    sys.unraisablehook = handler.unraisable
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_forget)


_forking = threading.local()


def _hold() -> None:
    """Around a fork: a signal that came to the child before it has forgotten its parent's pipe
    would be one to the parent.
    """
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _forget() -> None:
    """In a forked worker: its signals are none of its parent's, to whose pipe they would go, and
    Ctrl-C, which a terminal sends to all, is answered by the parent.
    """
    with contextlib.suppress(ValueError):  # a thread of native code forked
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_go()


def leave_until_saving() -> None:
    """The same for a command that goes on where it stopped: 75, because before the first step there
    is nothing to save, and after the last one everything is.
    """
    leave_when_asked(Preempted.exit_code, "leaving; no step is under way.")


class StopRequest:
    """Context manager: `requested` turns true on SIGINT or SIGTERM, or when the reader of the
    output has gone; a second signal exits with 75.

    Handlers can be set in the main thread alone; elsewhere (tests) this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        global _asked
        _asked = self
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _asked
        _asked = None
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
            lock.release_all()
            end_children()
            os._exit(Preempted.exit_code)
        self.requested = True
        print(
            f"\n{name}: saving after this step, then stopping. Once more leaves at once.",
            file=sys.stderr,
            flush=True,
        )


_asked: StopRequest | None = None


def reader_gone(full: bool = False) -> bool:
    """To be called when standard output could not be written: asks the loop under way, if there
    is one, to save and stop. What is printed from now on goes nowhere.

    Args:
      full: see `output_closed`.

    Returns:
      Whether there is one; otherwise the error is to go its way, which ends the command.
    """
    if _asked is None or not output_closed(full):
        return False
    _asked.requested = True
    return True
