"""What the loops of both families do around their steps: workdir, resume, metrics, summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from trainlib import config as config_lib
from trainlib.checkpoint import Checkpoints, describe_versions
from trainlib.data import position_changes
from trainlib.errors import ConfigError, NumericAbort, StorageError
from trainlib.metrics import compute
from trainlib.progress import Progress, summary
from trainlib.step import Sums
from trainlib.writers import Writers

SUMMARY = "summary.json"


class Recorder:
    """Writes the metrics of each step one step late, so that the device never waits for the host.

    Args:
      config: reads `log_every` and `max_skipped_steps`.
      schedule: number of applied updates -> learning rate.
      progress: the live line.
      writers: metric files; None on all hosts but the first.
      shown: metrics that the live line shows.
      values_of: sums of a step -> values to write.
    """

    def __init__(
        self,
        config: Any,
        schedule: Callable[[int], Any],
        progress: Progress,
        writers: Writers | None,
        *,
        shown: tuple[str, ...] = ("loss",),
        values_of: Callable[[Sums], dict[str, float]] = compute,
    ):
        self._config, self._schedule, self._shown = config, schedule, shown
        self._progress, self._writers, self._values_of = progress, writers, values_of
        self._pending: tuple[int, Sums] | None = None

    def record(self, number: int, sums: Sums) -> None:
        """Takes the sums of step `number` and writes those of the step before."""
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
        if row > self._config.max_skipped_steps:
            raise NumericAbort(
                f"The loss or a gradient was not finite for {int(row)} steps in a row, up to step "
                f"{number}; max_skipped_steps={self._config.max_skipped_steps} allows no more. "
                "None of these updates was applied, and older checkpoints are as they were. Lower "
                "schedule.learning_rate, lengthen schedule.warmup_steps or set optimizer.clip_norm."
            )
        self._progress.update(number, **{name: values[name] for name in self._shown})


def open_workdir(config: ConfigDict, workdir: Path) -> Checkpoints:
    """Makes the workdir and opens its checkpoints.

    Raises:
      StorageError: the directory cannot be made or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"--workdir={workdir} cannot be made: {error.strerror}. Choose a directory that you "
            "may write to."
        ) from None
    kept: Any = config.checkpoint
    return Checkpoints(workdir / "checkpoints", keep=kept.keep, best=kept.best)


def save_config(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved configuration; `--config=WORKDIR/config.json` starts from it."""
    (workdir / "config.json").write_text(config_lib.to_json(config))


def checkpoint_meta(config: ConfigDict, position: dict[str, Any]) -> dict[str, Any]:
    """The JSON item of a checkpoint: resolved configuration, data position, versions."""
    values = json.loads(config_lib.to_json(config))
    return {"config": values, "data": position, "versions": describe_versions()}


def check_resume(
    meta: Mapping[str, Any], config: ConfigDict, fixed: tuple[str, ...], position: dict[str, Any]
) -> list[str]:
    """What changed since the checkpoint, one line each.

    Args:
      meta: the JSON item of the checkpoint.
      config: the configuration of this run.
      fixed: keys (and beginnings of keys) that a resumed run may not change, because they decide
        what its weights or its data position mean.
      position: `data_position` of the data set as it is now.

    Raises:
      ConfigError: a fixed key changed.
    """
    changes = config_lib.differences(meta["config"], config_lib.flatten(config))
    lines = {key: f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items()}
    broken = [line for key, line in lines.items() if key.startswith(fixed)]
    if broken:
        raise ConfigError(
            f"The run in this workdir was made with another configuration ({'; '.join(broken)}), "
            "and its weights or its data position mean something else now. Use a new --workdir, or "
            "set these keys back."
        )
    return [*lines.values(), *position_changes(meta["data"], position)]


def keep_summary(workdir: Path, title: str, rows: Mapping[str, str], result: dict) -> None:
    """Prints the summary of a finished run and keeps it as JSON, with the figures in `result`."""
    content = json.dumps({**result, "rows": dict(rows)}, indent=2)
    (workdir / SUMMARY).write_text(content + "\n")
    print(summary(title, list(rows.items())), flush=True)


def report_complete(workdir: Path, done: int, steps: int) -> None:
    """Says that there is nothing left to do, and repeats the summary."""
    path = workdir / SUMMARY
    rows = json.loads(path.read_text())["rows"] if path.exists() else {"checkpoints": str(workdir)}
    print(summary(f"Complete: {done} steps are done, {steps} were asked for.", list(rows.items())))
    print("\nTo go on, ask for more: --config.steps=N.")
