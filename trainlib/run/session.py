"""The bookkeeping around a training loop: lock, resume, progress, metric files, watchdog, requests
to stop, evaluation, saves and the summary.

The loop itself stays in the family's `train.py`; `vitattn/train.py` is the shortest that uses all
of a session, in the order in which its methods stand here.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import jax
import numpy as np

from trainlib import config as settings
from trainlib.checkpoint.write import warn
from trainlib.data.order import data_position
from trainlib.errors import Preempted
from trainlib.model.metrics import compute
from trainlib.run import goodput, peers, watchdog
from trainlib.run.interrupt import GivenUp, StopRequest
from trainlib.run.metric_writers import Writers
from trainlib.run.progress import Progress, duration
from trainlib.run.recorder import Recorder, Watch, no_watch
from trainlib.run.resume import checkpoint_meta, eval_due, resume
from trainlib.run.summary import report_complete, save_summary
from trainlib.run.trackers.feed import Trackers
from trainlib.run.trackers.tracker import classes
from trainlib.run.workdir import agree_on_workdir, evidence_kept, open_workdir, save_config
from trainlib.step.memory import check_memory
from trainlib.step.plan import Plan
from trainlib.step.profile import Profile, Steps
from trainlib.step.step import Sums
from trainlib.step.train_state import TrainState


class Source(Protocol):
    """The training split, as far as checkpoints tell it from another."""

    @property
    def digest(self) -> str:
        """What tells the content from another."""
        ...

    def __len__(self) -> int: ...


class Evaluation(Protocol):
    """What one evaluation measured."""

    def flat(self) -> dict[str, float]:
        """The figures as `metrics.jsonl`, TensorBoard and the checkpoint hold them."""
        ...

    def phrase(self) -> str:
        """The figures on one line."""
        ...


# Python's own thresholds of garbage collection. `launch.cli` starts with higher ones; saves leave
# copies of the state in cycles, which must not wait long.
_COLLECTIONS = (700, 10, 10)

Result = TypeVar("Result", bound=Evaluation)
MakeWatch = Callable[[Path, int], Watch]  # workdir, step that the run starts from
CheckMeta = Callable[[Mapping[str, Any], int], object]


class Session(Generic[Result]):
    """One run of a training command, from the lock on its workdir to its summary.

    Args:
      plan: of the run.
      workdir: where it lives; locked from here on.
      source: the training split, whose position checkpoints hold.
      fixed: keys, and beginnings of keys, that a resumed run may not change.
      began: when the command started, by `time.monotonic`.
      forward_flops: -> FLOPs of one example forward, for the MFU.
      evaluates: whether there is anything to evaluate on.
      meta: what checkpoints hold beside configuration and position.
      check: (meta of a manifest, step) -> raises where the run may not resume from it.
      shown: metrics of a step on the progress line.
      values_of: sums of a step -> values to write.
      watching: what looks at each step and has more to write; made when the records after the start
        are cut, on the host that writes.
      profile: steps of which the first process writes a trace.

    Attributes:
      config: of the plan.
      main: whether this process prints and writes files.
      start: number of finished steps at the start.
      state: to resume from; None for a new run.
      eval_pending: the evaluation due at `start` was skipped because the run was stopped.
      result: of the evaluation at the current step; None where none was finished.
      number: the current step.
      stopping: whether the run was asked to stop: no further step begins.

    Raises:
      ConfigError: the state does not fit the devices, another run holds the workdir, a fixed key
        changed, or `writers.extra` names no tracker.
      CheckpointError: no step can be resumed from.
      StorageError: the disk refuses.
    """

    result: Result | None

    def __init__(
        self,
        plan: Plan[Any],
        workdir: Path,
        source: Source,
        *,
        fixed: tuple[str, ...],
        began: float,
        forward_flops: Callable[[], float],
        evaluates: bool = True,
        meta: Mapping[str, Any] | None = None,
        check: CheckMeta = lambda meta, step: None,
        shown: tuple[str, ...] = ("loss",),
        values_of: Callable[[Sums], dict[str, float]] = compute,
        watching: MakeWatch = lambda workdir, start: no_watch,
        profile: Steps | None = None,
    ):
        check_memory(plan)
        config = plan.config
        self.plan, self.config, self.workdir = plan, config, workdir
        self.main = jax.process_index() == 0
        self._source, self._meta = source, dict(meta or {})
        self._began, self._evaluates, self._forward_flops = began, evaluates, forward_flops
        self._shown, self._values_of, self._watching = shown, values_of, watching
        self._tracker_classes = classes(config.writers.extra) if self.main else {}
        self._checkpoints = open_workdir(config, workdir, plan.abstract)
        agree_on_workdir(workdir, self._checkpoints)
        resumed = resume(
            self._checkpoints, config, fixed, self._position, plan.abstract_state(), check
        )
        self.start = resumed.step if resumed else 0
        self._profile = Profile(profile if self.main else None, workdir, self.start)
        self.state = resumed.state if resumed else None
        self.eval_pending = resumed is not None and resumed.eval_pending and evaluates
        self._changed = resumed.changed if resumed else []
        self.result, self.number, self.stopping = None, self.start, False

    def _position(self, number: int) -> dict[str, Any]:
        config = self.config
        return data_position(
            number, config.batch_size, config.seed, len(self._source), self._source.digest
        )

    # ---------------------------------------------------------------- before the loop

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.state is not None and self.start >= self.config.steps and not self.eval_pending

    def report_complete(self) -> int:
        """Says that there is nothing left to do, repeats the summary and gives the workdir back;
        returns the exit code.
        """
        self._checkpoints.close()
        report_complete(self.workdir, self.start, self.config.steps)
        return 0

    def announce(self, lines: str) -> None:
        """Writes config.json, and prints what the run is and what changed since it was saved."""
        if not self.main:
            return
        save_config(self.config, self.workdir)
        print(lines, flush=True)
        for line in self._changed:
            print(f"  changed since step {self.start}: {line}", flush=True)

    # ---------------------------------------------------------------- around the loop

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around the loop: progress, metric files, watchdog and requests to stop. At its end, all
        that is under way is on the disk and the workdir is given back.

        Raises:
          Preempted: the run was asked to stop, and everything is saved.
        """
        config = self.config
        devices = list(self.plan.mesh.devices.flat)
        self.progress = Progress(
            config.steps,
            self.start,
            config.batch_size,
            enabled=self.main,
            peak=goodput.peak_rate(self._forward_flops, devices),
            began=self._began,
        )
        redo = "eval" if self.eval_pending else ""
        values = json.loads(settings.to_json(config))
        self._trackers = Trackers(self._tracker_classes, self.workdir, values, warn)
        self._writers = (
            Writers(self.workdir, self.start, redo=redo, extra=[self._trackers])
            if self.main
            else None
        )
        self._recorder = Recorder(
            config,
            self.plan.schedule,
            self.progress,
            self._writers,
            shown=self._shown,
            values_of=self._values_of,
            watch=self._watching(self.workdir, self.start) if self.main else no_watch,
        )
        with (
            contextlib.closing(self._trackers),
            contextlib.closing(self.progress),
            self._profile.run(
                self.progress.message, functools.partial(self.progress.pause, "saving")
            ),
            watchdog.follow(self.progress.beat),
            StopRequest() as self._stop,
            jax.transfer_guard("disallow"),
        ):
            yield
            self._recorder.flush()
            with self.progress.pause("saving"):
                self._checkpoints.close()
            if not self.stopping and self.result is not None:
                self._trackers.summary(self.result.flat())
        if self._writers:
            self._writers.close()
        self._seconds = time.monotonic() - self._began
        if self.stopping:
            raise Preempted(
                f"Stopped on request after step {self.number} of {config.steps}. The state is "
                f"saved in {self.workdir}; the same command goes on from there."
            )

    def steps(
        self, batches: Iterator[dict[str, np.ndarray]]
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(number, batch) of each step that is left, until the run is asked to stop."""
        while self.number < self.config.steps and not self.stopping:
            with self.progress.waiting():
                batch = next(batches)
            self.number, self.result = self.number + 1, None
            with self._profile.step(self.number):
                yield self.number, batch

    def record(self, number: int, sums: Sums) -> None:
        """Takes the sums of a step that was just dispatched, and asks whether the run is to stop.

        Raises:
          NumericAbort: the loss or a gradient was not finite for too many steps in a row.
        """
        self._profile.dispatched(number, sums)
        self._recorder.record(number, sums)
        self._checkpoints.poll()
        if number == self.start + 1:
            gc.set_threshold(*_COLLECTIONS)
            jax.block_until_ready(sums)
            if self.main:
                took = duration(time.monotonic() - self._began)
                self.progress.message(f"first step after {took}")
            # Rates count from here. On CPUs the next dispatch lasts as long as its step, so that
            # what is read after it would be stamped with the end of the second step.
            self._recorder.flush()
        last = number == self.config.steps
        self.stopping = not last and peers.stopping(number, self._stop.requested)

    # ---------------------------------------------------------------- evaluation

    def eval_due(self, number: int) -> bool:
        """Whether the run is evaluated after a step. One that is to stop skips it, and makes up for
        it when it resumes.
        """
        return self._evaluates and not self.stopping and eval_due(self.config, number)

    def give_up(self) -> None:
        """To be called between the batches of an evaluation.

        Raises:
          GivenUp: the run is to stop; `evaluating` catches it.
        """
        self._stop.give_up()

    @contextlib.contextmanager
    def evaluating(self, number: int) -> Iterator[None]:
        """Around an evaluation, which sets `result`: it is written and shown. A request to stop
        meanwhile leaves `result` at None.

        Raises:
          NumericAbort: the evaluation met numbers that are not finite.
        """
        self._recorder.flush()
        self.result = None
        try:
            with self.progress.pause("evaluating"), evidence_kept(self.workdir):
                yield
        except GivenUp:
            self.stopping = True
            return
        assert self.result is not None
        figures = self.result.flat()
        if self._writers:
            self._writers.write(number, "eval", figures)
        self.progress.message(f"step {number}: {self.result.phrase()}")
        if number == self.start:  # pending; the checkpoint is there already
            self._checkpoints.add_metrics(number, figures)

    def measured(self, number: int, kind: str, measure: Callable[[], Mapping[str, float]]) -> None:
        """Writes what is measured beside evaluations, if there is anything.

        Args:
          number: of the step.
          kind: of the record.
          measure: called on every host.
        """
        self._recorder.flush()
        with self.progress.pause("evaluating"):
            values = measure()
        if self._writers and values:
            self._writers.write(number, kind, values)

    # ---------------------------------------------------------------- saving, and the end

    def save_due(self, number: int) -> bool:
        """Whether the state is saved after a step."""
        last = number == self.config.steps
        return self.stopping or last or number % self.config.checkpoint.every == 0

    def save(self, number: int, state: TrainState) -> None:
        """Saves the state, with what was measured at this step, while the next steps run."""
        self._recorder.flush()
        with self.progress.pause("saving"):
            meta = checkpoint_meta(self.config, self._position(number)) | self._meta
            figures = self.result.flat() if self.result is not None else None
            self._checkpoints.save(number, state, meta, figures)
        if self._writers:
            self._writers.write(number, "goodput", goodput.values(self.progress))

    def report(
        self,
        measured: Mapping[str, str],
        throughput: str,
        pictures: Mapping[str, str],
        unreadable: list[tuple[str, str]],
        unit: str,
        figures: Mapping[str, Any],
    ) -> None:
        """Prints the summary of the finished run and keeps it as JSON.

        Args:
          measured: rows on what the last evaluation gave.
          throughput: in the units of the family.
          pictures: row -> where the picture is.
          unreadable: (record, reason) of records that were skipped.
          unit: what a record is, in the plural.
          figures: what the JSON holds beside the rows.
        """
        steps = self.number - self.start
        rows = {
            **measured,
            "time": f"{duration(self._seconds)} for {steps} steps",
            "throughput": throughput,
            **goodput.rows(self.progress, jax.devices()),
            "config": str(self.workdir / "config.json"),
            "metrics": f"{self.workdir / 'metrics.jsonl'}, {self.workdir / 'tensorboard'}",
            **pictures,
            "checkpoints": str(self.workdir / "checkpoints"),
        }
        if self._trackers.states():
            rows["trackers"] = "; ".join(self._trackers.states())
        if unreadable:
            named = "; ".join(f"{where}: {why}" for where, why in unreadable[:5])
            rows["unreadable"] = f"{len(unreadable)} {unit}: {named}"
        title = f"{self.config.name}: done"
        save_summary(self.workdir, title, rows, {"step": self.config.steps, **figures})
