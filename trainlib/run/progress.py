"""Progress of a run: one live line on a terminal or in a notebook, plain lines in a log, and a
closing summary.

    step 1200/5000  24%  ETA 3m05s  loss 1.234  2,345 ex/s  mfu 41%  wait 3%

Rates are taken over a moving window that starts after the first step, so compilation is not in
them, and pauses (evaluation, saving) are left out. `wait` is the share of time that the devices
stood waiting for data: the loop hands a step over and asks for the next batch while it is under
way, and that costs nothing. `mfu` is told where the peak of the chips is known
(`trainlib.run.goodput`).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import shutil
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

from trainlib.errors import plain
from trainlib.run import interrupt

_WIDTH = 80  # columns, where the terminal does not say
_CLEAR = "\r\x1b[K"


class Rates(NamedTuple):
    """Speed over a window. `eta` and `examples_per_second` are None before two steps have ended.

    Attributes:
      examples_per_second: throughput.
      wait: share of the time that the devices waited for data, 0 to 1.
      eta: seconds to the last step.
      mfu: share of the peak of the chips, 0 to 1; None where the peak is unknown.
    """

    examples_per_second: float | None
    wait: float
    eta: float | None
    mfu: float | None = None


class Beat(NamedTuple):
    """How far a loop is, for `trainlib.run.watchdog`.

    Attributes:
      mark: changes whenever something ended.
      doing: what it is at: "step 12".
      phase: "step", or one that has no usual length: "compiling" (the first step, the wait for its
        batch included), "evaluating", "saving".
      typical: median seconds of a step, pauses taken out; 0 when unknown.
    """

    mark: int
    doing: str
    phase: str
    typical: float


class _Sample(NamedTuple):
    time: float  # seconds, pauses taken out
    step: int
    waited: float  # seconds that the devices waited for data since the start


class _Devices:
    """Since when the devices have had no step to do; a thread waits for the end of each.

    Args:
      clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._steps: queue.SimpleQueue[tuple[int, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._given = 0  # steps handed over
        self._ended = 0, -float("inf")  # steps that have ended, and when the last one did

    def give(self, ready: Callable[[], Any]) -> None:
        """Notes a step; `ready` returns when it has ended."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="steps", daemon=True)
            self._thread.start()
        self._given += 1
        self._steps.put((self._given, ready))

    def idle(self, start: float) -> float:
        """Seconds from `start` to now without a step under way."""
        ended, when = self._ended
        return self._clock() - max(start, when) if ended == self._given else 0.0

    def close(self) -> None:
        """Ends the thread once all steps have ended."""
        self._steps.put(None)

    def _watch(self) -> None:
        while (step := self._steps.get()) is not None:
            number, ready = step
            with contextlib.suppress(Exception):  # the loop hears of it where it reads the step
                ready()
            self._ended = number, self._clock()


def rates(
    first: _Sample,
    last: _Sample,
    examples_per_step: int,
    total_steps: int,
    peak: float | None = None,
) -> Rates:
    """Rates between two samples; `peak` is examples per second at an MFU of 1."""
    seconds, steps = last.time - first.time, last.step - first.step
    if steps <= 0 or seconds <= 0:
        return Rates(None, 0.0, None)
    wait = min(1.0, (last.waited - first.waited) / seconds)
    eta = (total_steps - last.step) * seconds / steps
    speed = steps * examples_per_step / seconds
    return Rates(speed, wait, eta, speed / peak if peak else None)


def duration(seconds: float) -> str:
    """Formats seconds in two units at most: 45s, 3m05s, 2h07m, 3d04h."""
    seconds = round(seconds)
    for unit, size, smaller, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // part:02d}{smaller}"
    return f"{seconds}s"


def number(value: float) -> str:
    """Formats a figure to be read, not parsed: about four digits, thousands separated."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


class _Log:
    """A file, a pipe, or a terminal that cannot rewrite a line: plain lines, ever fewer of them.

    Args:
      write: takes text.
    """

    live = False

    def __init__(self, write: Callable[[str], None]):
        self._write = write

    def interval(self, seconds: float) -> float:
        """Least seconds between two lines of a run that is `seconds` old: 10 at first, later
        a fiftieth of that age, and at most 5 minutes.
        """
        return min(max(10.0, seconds / 50), 300.0)

    @property
    def width(self) -> int:
        """Columns of a line."""
        return 2 * _WIDTH

    def show(self, line: str) -> None:
        """Shows the line as it stands now."""
        self._write(f"{line}\n")

    def message(self, text: str, line: str) -> None:
        """Shows lines that stay; `line` is the live one."""
        del line
        self._write(f"{text}\n")

    def end(self, line: str) -> None:
        """The line will not change any more."""


class _Terminal(_Log):
    """One line that is rewritten in place; messages stand above it."""

    live = True

    def interval(self, seconds: float) -> float:
        return 0.2

    @property
    def width(self) -> int:
        return shutil.get_terminal_size((_WIDTH, 24)).columns

    def show(self, line: str) -> None:
        self._write(f"{_CLEAR}{line}")

    def message(self, text: str, line: str) -> None:
        self._write(f"{_CLEAR}{text}\n{line}")

    def end(self, line: str) -> None:
        self._write(f"{_CLEAR}{line}\n")  # in place of what it was doing last


class _Notebook(_Log):
    """An output of a notebook's cell that is replaced in place, so that the saved notebook holds
    one line; messages stand below it.
    """

    live = True

    def __init__(self, write: Callable[[str], None]):
        super().__init__(write)
        self._handle: Any = None

    def interval(self, seconds: float) -> float:
        return 1.0

    def show(self, line: str) -> None:
        display = importlib.import_module("IPython.display").display  # there in a kernel alone
        content = {"text/plain": line}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def end(self, line: str) -> None:
        if self._handle is not None:
            self.show(line)


def _fitting(parts: Sequence[str], width: int) -> str:
    """As many parts as fit whole; of the first as much as there is room for."""
    line = parts[0][: max(0, width)]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line


def _screen(stream: TextIO, write: Callable[[str], None]) -> _Log:
    """What a stream leads to."""
    if stream is sys.stdout and _in_kernel():
        return _Notebook(write)
    # A command that a cell runs (`!vitattn-moe train`) has a terminal, of which every frame would
    # be kept in the notebook.
    rewrites = os.environ.get("TERM") != "dumb" and "JPY_PARENT_PID" not in os.environ
    return _Terminal(write) if stream.isatty() and rewrites else _Log(write)


def _in_kernel() -> bool:
    """Whether this process is the kernel of a notebook."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None


class Progress:
    """Shows how far a run is; call `update` after every step.

    Args:
      total_steps: the last step of the run.
      start_step: finished steps at the start (of a resumed run).
      examples_per_step: global batch size.
      stream: where to write; None: standard output.
      enabled: False on all hosts but one; rates are kept all the same.
      clock: seconds, monotonic.
      interval: least seconds between two lines; None: 0.2 on a terminal, 1 in a notebook, 10 and
        more in a log.
      window: seconds that rates are taken over.
      peak: examples per second at an MFU of 1 (`goodput.peak_rate`); None: unknown.
      began: when the run started, by `clock`; None: now.
      unit: what is counted.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        examples_per_step: int = 1,
        *,
        stream: TextIO | None = None,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
        interval: float | None = None,
        window: float = 30.0,
        peak: float | None = None,
        began: float | None = None,
        unit: str = "step",
    ):
        self._unit = unit
        self._total, self._step, self._examples = total_steps, start_step, examples_per_step
        self._stream = stream or sys.stdout
        self._screen = _screen(self._stream, self._write)
        self._enabled, self._clock, self._window = enabled, clock, window
        self._interval = interval
        self._peak = peak
        self._waited = self._paused = 0.0
        self._devices = _Devices(clock)
        self._began = clock() if began is None else began
        self._last_end = 0.0
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._doing, self._pause, self._beats = "", "", 0
        self._durations: deque[float] = deque(maxlen=101)  # seconds of the last steps
        self._samples: deque[_Sample] = deque()
        self._first: _Sample | None = None
        self._shown = -float("inf")
        self._values: dict[str, float] = {}

    def _now(self) -> _Sample:
        return _Sample(self._clock() - self._paused, self._step, self._waited)

    def dispatched(self, ready: Callable[[], Any]) -> None:
        """Notes that the devices have a step to do; `ready` returns when it has ended, and is
        called in a thread.
        """
        self._devices.give(ready)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the request for a batch: counts as waiting for data, from the end of the last step
        that was dispatched.
        """
        start = self._clock()
        self._doing = "the wait for data"
        try:
            yield
        finally:
            self._doing = ""
            self._waited += self._devices.idle(start)

    @contextlib.contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Around "evaluating" or "saving": shown on a terminal, left out of all rates, from the end
        of the last step that was dispatched.
        """
        start = self._clock()
        self._doing = self._pause = what
        self._beats += 1
        if self._screen.live and self._enabled:
            line = f"{self._unit} {self._step}/{self._total}  {what} ..."
            self._screen.show(line[: self._screen.width - 1])
        try:
            yield
        finally:
            self._doing = self._pause = ""
            self._beats += 1
            idle = self._devices.idle(start)
            self._paused += idle
            self._spent[what] += idle

    def update(self, step: int, **values: float) -> None:
        """Notes that `step` steps have ended and shows it when it is time.

        Args:
          step: finished steps.
          **values: figures to show, such as `loss`; host floats, kept until the next ones come.
        """
        self._step = step
        self._values.update(values)
        now = self._now()
        self._beats += 1
        if self._first is None:
            self._first = now
            self._samples.append(now)
            self._spent["starting"] = self.seconds() - self._paused
        else:
            self._durations.append(now.time - self._last_end)
        self._last_end = now.time
        least = self._screen.interval(self.seconds()) if self._interval is None else self._interval
        if self._clock() - self._shown < least and step < self._total:
            return
        self._shown = self._clock()
        if now.step > self._samples[-1].step:
            self._samples.append(now)
        # One sample older than the window stays, so that slow steps still have two.
        while len(self._samples) > 2 and self._samples[1].time < now.time - self._window:
            self._samples.popleft()
        if self._enabled:
            self._screen.show(self.line())

    def rates(self) -> Rates:
        """Rates over the window up to now."""
        if not self._samples:
            return Rates(None, 0.0, None)
        return rates(self._samples[0], self._now(), self._examples, self._total, self._peak)

    def average(self) -> Rates:
        """Rates over the whole run, from the end of its first step."""
        now = self._now()
        return rates(self._first or now, now, self._examples, self._total, self._peak)

    def seconds(self) -> float:
        """Seconds since the run started."""
        return self._clock() - self._began

    def spent(self) -> dict[str, float]:
        """Seconds of the run that were no steps: `starting` (to the end of the first step),
        `waiting for data` after it, and each kind of pause by its name.
        """
        waited = self._waited - (self._first.waited if self._first else self._waited)
        return {**self._spent, "waiting for data": waited}

    def beat(self) -> Beat:
        """How far the loop is, for `trainlib.run.watchdog`; may be called from another thread."""
        doing = self._doing or f"step {self._step + 1}"
        known = tuple(self._durations)
        typical = statistics.median(known) if known else 0.0
        phase = self._pause or ("compiling" if self._first is None else "step")
        return Beat(self._beats, doing, phase, typical)

    def line(self) -> str:
        """The line as it stands, cut to the terminal."""
        speed = self.rates()
        share = 100 * self._step // max(1, self._total)
        parts = [f"{self._unit} {self._step}/{self._total}  {share}%"]
        if speed.eta is not None and self._step < self._total:
            parts.append(f"ETA {duration(speed.eta)}")
        parts += [f"{plain(name)} {number(value)}" for name, value in self._values.items()]
        if speed.examples_per_second is not None:
            parts.append(f"{number(speed.examples_per_second)} ex/s")
            parts += [f"mfu {speed.mfu:.0%}"] if speed.mfu is not None else []
            parts.append(f"wait {speed.wait:.0%}")
        return _fitting(parts, self._screen.width - 1)

    def message(self, text: str) -> None:
        """Writes lines of their own, above the live line."""
        text = "\n".join(map(plain, text.split("\n")))
        if self._enabled:
            self._screen.message(text, self.line())

    def close(self) -> None:
        """Ends the live line; what is written later is plain. May be called twice."""
        if self._enabled and self._first is not None:
            self._screen.end(self.line())
        self._screen = _Log(self._write)
        self._devices.close()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:  # a pipe without a reader, or a log on a full disk
            if not interrupt.reader_gone(full=not isinstance(error, BrokenPipeError)):
                raise


def summary(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    """Formats the table that closes a run: a title and rows (name, value), floats with `number`.

    Values start in one column; one too long for 80 columns stands whole on a line of its own, so
    that a path can be copied.
    """
    indent, title = max((len(plain(name)) for name, _ in rows), default=0) + 4, plain(title)
    lines = ["", title, "-" * min(_WIDTH, len(title))]
    for name, value in rows:
        name = plain(name)
        text = number(value) if isinstance(value, float) else plain(value)
        if indent + len(text) > _WIDTH:
            lines += [f"  {name}", f"    {text}"]
        else:
            lines.append(f"  {name:<{indent - 2}}{text}")
    return "\n".join(lines)
