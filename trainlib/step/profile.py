"""A trace of some training steps, for a look at what a device did when: `--profile=STEPS`."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

from trainlib.errors import ConfigError, shown
from trainlib.files import make_directory

FOLDER = "profile"
_WARM = 2  # steps after a start that compile and fill buffers


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps to be traced: `first` to `last`, or `count` of them soon after the start."""

    first: int = 0
    last: int = 0
    count: int = 0

    def after(self, start: int) -> tuple[int, int]:
        """First and last number, in a run that starts after step `start`."""
        first = start + _WARM + 1
        return (first, first + self.count - 1) if self.count else (self.first, self.last)


def steps(text: str) -> Steps:
    """Reads the value of `--profile`.

    Raises:
      ConfigError: it is neither FIRST:LAST nor N.
    """
    match = re.fullmatch(r"([1-9]\d{0,8})(?::([1-9]\d{0,8}))?", text)
    if match and match[2] is None:
        return Steps(count=int(match[1]))
    if match and int(match[1]) <= int(match[2]):
        return Steps(int(match[1]), int(match[2]))
    raise ConfigError(
        f"--profile={shown(text, 40)} names no steps. Write --profile=10:15 for the steps 10 to "
        "15, or --profile=5 for five steps soon after the start."
    )


class Profile:
    """Traces some steps of one run; the loop runs as it would without.

    Args:
      asked: which steps; None: no profile.
      workdir: of the run.
      start: number of finished steps at its start.
    """

    def __init__(self, asked: Steps | None, workdir: Path, start: int):
        self._asked = asked is not None
        self.first, self.last = asked.after(start) if asked else (-1, -1)
        self._start, self._number, self._folder = start, start, workdir / FOLDER
        self._sums: Any = ()  # of the newest step, until which the trace lasts
        self._running, self._done = False, False

    @contextlib.contextmanager
    def run(
        self, say: Callable[[str], None], pause: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[None]:
        """Around the loop.

        Args:
          say: prints where the trace is, or that it was cut off or is of steps that did not come.
          pause: around what takes longer than a step.
        """
        self._say, self._pause = say, pause
        try:
            yield
        finally:
            if self._running:
                self._write()
            elif self._asked and not self._done:
                say(
                    f"no profile was written: --profile asks for the steps {self.first} to "
                    f"{self.last}, and these were {self._start + 1} to {self._number}"
                )

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step, within `run`: starts the trace before the first of its steps, names each,
        and ends it after the last.
        """
        if number == self.first:
            jax.block_until_ready(self._sums)
            make_directory(self._folder)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # all calls of Python would bury the rest
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True
        if not self._running:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if number == self.last:
            self._write()

    def dispatched(self, number: int, sums: Any) -> None:
        """Takes what a step returned, which may still be under way."""
        if self._asked:
            self._number, self._sums = number, sums

    def _write(self) -> None:
        jax.block_until_ready(self._sums)
        with self._pause():
            jax.profiler.stop_trace()
        self._running, self._done, self._sums = False, True, ()
        newest = max(self._folder.glob("plugins/profile/*/*.trace.json.gz"), default=self._folder)
        cut = "" if self._number == self.last else f" (the run ended before {self.last})"
        self._say(
            f"profile of the steps {self.first} to {self._number}{cut}: open {newest} at "
            f"https://ui.perfetto.dev, or `tensorboard --logdir={self._folder}` (pip install xprof)"
        )
