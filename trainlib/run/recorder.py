"""Writes what steps measured, without making the devices wait."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from trainlib.errors import NumericAbort
from trainlib.model.metrics import compute
from trainlib.run.metric_writers import Writers
from trainlib.run.progress import Progress
from trainlib.step.step import Sums


@dataclasses.dataclass(frozen=True)
class Note:
    """A further record of a step.

    Attributes:
      kind: of the record.
      values: name -> number or text.
      line: what the run says of it; "" is nothing.
    """

    kind: str
    values: Mapping[str, Any]
    line: str = ""


Watch = Callable[[int, Mapping[str, float]], Iterable[Note]]  # number of a step, what it measured


def no_watch(number: int, values: Mapping[str, float]) -> Iterable[Note]:
    """Has nothing to write."""
    return ()


class Recorder:
    """Writes the metrics of every `log_every`-th step, of that step alone, one step late, so that
    the device never waits for the host.

    Args:
      config: reads `log_every` and `max_skipped_steps`.
      schedule: number of applied updates -> learning rate.
      progress: the live line.
      writers: metric files; None on all hosts but the first.
      shown: metrics that the live line shows.
      values_of: sums of a step -> values to write.
      watch: what else is to be written of a step; asked at each, on the host that writes.
    """

    def __init__(
        self,
        config: ConfigDict,
        schedule: Callable[[int], Any],
        progress: Progress,
        writers: Writers | None,
        *,
        shown: tuple[str, ...] = ("loss",),
        values_of: Callable[[Sums], dict[str, float]] = compute,
        watch: Watch = no_watch,
    ):
        self._config, self._schedule, self._shown = config, schedule, shown
        self._progress, self._writers, self._values_of = progress, writers, values_of
        self._watch = watch
        self._pending: tuple[int, Sums] | None = None

    def record(self, number: int, sums: Sums) -> None:
        """Takes the sums of step `number`, just dispatched, and writes those of the step before."""
        self._progress.dispatched(functools.partial(jax.block_until_ready, sums))
        self.flush()
        self._pending = number, sums

    def flush(self) -> None:
        """Writes what is pending.

        Raises:
          NumericAbort: the loss or gradient was not finite for too many steps in a row.
        """
        if self._pending is None:
            return
        number, sums = self._pending
        self._pending = None
        values = self._values_of(sums)
        row = values.pop("skipped_in_row")
        if self._writers and number % self._config.log_every == 0:
            with jax.transfer_guard("allow"):
                # A skipped update does not move the schedule; this was the rate of this step.
                rate = float(self._schedule(number - 1 - int(values["skipped"] - (row > 0))))
            self._writers.write(number, "train", values | {"learning_rate": rate})
        if self._writers:
            for note in self._watch(number, values):
                self._writers.write(number, note.kind, note.values)
                if note.line:
                    self._progress.message(note.line)
        if row > self._config.max_skipped_steps:
            raise NumericAbort(
                f"The loss or a gradient was not finite for {int(row)} steps in a row, up to step "
                f"{number}; max_skipped_steps={self._config.max_skipped_steps} allows no more. "
                "None of these updates was applied, and older checkpoints are as they were. Lower "
                "schedule.learning_rate, lengthen schedule.warmup_steps or set optimizer.clip_norm."
            )
        self._progress.update(number, **{name: values[name] for name in self._shown})
