"""What the loops of both families do around their steps: workdir, resume, metrics, summary."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from trainlib import config as config_lib
from trainlib.checkpoint.checkpoints import Checkpoints, DamagedStep, describe_versions, first_says
from trainlib.checkpoint.manifest import larger_is_better
from trainlib.checkpoint.workdir_lock import NAME as LOCK_NAME
from trainlib.checkpoint.workdir_lock import WorkdirLock
from trainlib.checkpoint.write import storage_error, warn
from trainlib.data.order import position_changes
from trainlib.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericAbort,
    StorageError,
    UserError,
    one_of,
    shown,
)
from trainlib.files import check_target, make_directory, write_atomically
from trainlib.model.metrics import compute
from trainlib.model.weights import Abstract
from trainlib.run import peers
from trainlib.run.metric_writers import Writers
from trainlib.run.progress import Progress, summary
from trainlib.seal import seal_of
from trainlib.step.step import Sums
from trainlib.step.train_state import TrainState
from trainlib.untrusted_files import read_json, read_small

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
        config: ConfigDict,
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
        if row > self._config.max_skipped_steps:
            raise NumericAbort(
                f"The loss or a gradient was not finite for {int(row)} steps in a row, up to step "
                f"{number}; max_skipped_steps={self._config.max_skipped_steps} allows no more. "
                "None of these updates was applied, and older checkpoints are as they were. Lower "
                "schedule.learning_rate, lengthen schedule.warmup_steps or set optimizer.clip_norm."
            )
        self._progress.update(number, **{name: values[name] for name in self._shown})


PICTURES = ("curves.png", "expert_load.png")
METRICS, CLASS_NAMES, CONFIG = "metrics.jsonl", "class_names.txt", "config.json"
# What a run writes into its workdir, and what says that a workdir is one.
_FILES = (LOCK_NAME, CONFIG, METRICS, CLASS_NAMES, SUMMARY, *PICTURES)
_FOLDERS = ("checkpoints", "tensorboard")
_EXPORTED = ("export.json", "model.safetensors", "model.safetensors.index.json")


def check_workdir(workdir: Path) -> None:
    """Refuses a directory that holds something else than a run, or whose names lead elsewhere,
    before anything is written there.

    Raises:
      ConfigError: it is the directory of another program or an export; or a file or folder that a
        run writes is a link.
    """
    foreign = next((n for n in _EXPORTED if (workdir / n).is_file()), "")
    what = f"it holds {foreign}, exported weights" if foreign else _not_a_run(workdir)
    if what:
        raise ConfigError(
            f"--workdir={shown(workdir)} is no workdir of a run: {what}. A run would write over "
            "what is there. Give a directory that is new, or the --workdir of an earlier run."
        )
    for name in _FILES:
        check_target(workdir / name)
    for name in _FOLDERS:
        if os.path.lexists(workdir / name):
            make_directory(workdir / name)


def _not_a_run(workdir: Path) -> str:
    """Why a directory is not that of a run; "" where it may be, or where nothing is in the way."""
    config = workdir / CONFIG
    if config.is_file():
        try:
            found = config_lib.read_json(config)
        except UserError as error:
            return f"its {CONFIG} is none that a run wrote ({error})"
        return "" if "family" in found else f"its {CONFIG} is of another program, without `family`"
    if (workdir / LOCK_NAME).exists():  # a run that was stopped before it had written more
        return ""
    there = [name for name in (*_FILES, *_FOLDERS) if (workdir / name).exists()]
    return f"it holds {', '.join(there)}, and no {CONFIG} of a run" if there else ""


def open_workdir(config: ConfigDict, workdir: Path, abstract: Abstract) -> Checkpoints:
    """Makes the workdir, takes its lock and opens its checkpoints; closing them gives it back.

    Raises:
      ConfigError: another run is at work there, or it is no workdir, see `check_workdir`.
      StorageError: the directory cannot be made or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"--workdir={shown(workdir)} cannot be made: {error.strerror}. Choose a directory that "
            "you may write to."
        ) from None
    check_workdir(workdir)
    kept: Any = config.checkpoint
    made = Checkpoints(
        workdir / "checkpoints",
        keep=kept.keep,
        best=kept.best,
        larger_is_better=larger_is_better(kept.best),
        may_fail=kept.max_failed_saves,
        axes={n: s.axes for n, s in {**abstract.params, **abstract.model_state}.items()},
        lock=WorkdirLock(workdir) if jax.process_index() == 0 else None,
    )
    _opened.append(made)
    return made


_opened: list[Checkpoints] = []


@contextlib.contextmanager
def given_back() -> Iterator[None]:
    """Around a training: an error in it lets go of the workdir that it opened, after the save under
    way has ended, so that the next start finds nobody there.

    Processes of many end at once where one fails, and their ends give the lock back.
    """
    _opened.clear()
    try:
        yield
    except BaseException:
        for checkpoints in _opened if jax.process_count() == 1 else ():
            with contextlib.suppress(Exception):  # the first error is the one to be told
                checkpoints.close()
        raise
    finally:
        _opened.clear()


def check_best(config: ConfigDict, measured: Iterable[str]) -> None:
    """Refuses a `checkpoint.best` that no evaluation of the run will give.

    Args:
      config: of the run.
      measured: names of what its evaluations give.

    Raises:
      ConfigError: names those that they give.
    """
    kept: Any = config.checkpoint
    names = list(measured)
    if kept.best and kept.best not in names:
        raise one_of("checkpoint.best", kept.best, names)


def best_step(config: ConfigDict, workdir: Path) -> int:
    """What `--step=best` means: the kept step with the best evaluation by `checkpoint.best`.

    Raises:
      ConfigError: the run has no such metric.
      CheckpointError: no step was evaluated.
    """
    kept: Any = config.checkpoint
    metric = kept.best
    if not metric:
        raise ConfigError(
            "--step=best: this run did not keep its best step, since checkpoint.best was empty. "
            "Name a metric of its evaluations to take the best of the steps that are there, for "
            "example --config.checkpoint.best="
            f"{'top1' if config.family == 'vitattn' else 'cross_entropy'}, or give --step=N."
        )
    checkpoints = Checkpoints(
        workdir / "checkpoints", best=metric, larger_is_better=larger_is_better(metric)
    )
    return checkpoints.best()


def agree_on_workdir(workdir: Path, checkpoints: Checkpoints) -> None:
    """Sees to it that all processes look into one directory, whose lock the first one holds.

    Raises:
      CheckpointError: they see other checkpoints.
      ConfigError: the directory is not shared.
    """
    newest = checkpoints.latest() or 0
    peers.agree({"the newest checkpoint in --workdir": newest}, CheckpointError)
    path, late = workdir / LOCK_NAME, time.monotonic() + 10
    while not path.exists() and time.monotonic() < late:  # network disks show new files late
        time.sleep(0.1)
    # The lock names its holder, so a file of the same name on a disk of one's own is told apart.
    found = "not there"
    if path.exists():
        found = read_small(path, 4096, error=ConfigError).decode(errors="replace")
    peers.agree({f"{LOCK_NAME} in --workdir, a directory that all hosts must share,": found})


def write(path: Path, text: str) -> None:
    """Replaces a file of a workdir as a whole.

    Raises:
      StorageError: the disk refuses.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        raise storage_error(error, path) from None


def save_config(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved configuration; `--config=WORKDIR/config.json` starts from it."""
    write(workdir / CONFIG, config_lib.to_json(config))


def checkpoint_meta(config: ConfigDict, position: dict[str, Any]) -> dict[str, Any]:
    """What a run says of itself in a manifest: configuration, data position, what decides bits."""
    values = json.loads(config_lib.to_json(config))
    return {"config": values, "data": position, "versions": describe_versions(), **environment()}


def environment() -> dict[str, dict[str, Any]]:
    """How random numbers are drawn, and on what the arithmetic is done."""
    read = jax.config.values
    random = ("jax_default_prng_impl", "jax_threefry_partitionable")
    device = jax.devices()[0]
    return {
        "random": {name: read[name] for name in random},
        "platform": {
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "kind": device.device_kind,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "matmul_precision": read["jax_default_matmul_precision"],
        },
    }


class Resumed(NamedTuple):
    """Where a run goes on.

    Attributes:
      step: finished steps.
      state: verified.
      changed: since it was saved, a line each.
      owes: whether an evaluation after this step was left off when the run was asked to stop.
    """

    step: int
    state: TrainState
    changed: list[str]
    owes: bool


def evaluates(config: ConfigDict, step: int) -> bool:
    """Whether a run measures itself after a step."""
    return step == config.steps or bool(config.eval_every and step % config.eval_every == 0)


def resume(
    checkpoints: Checkpoints,
    config: ConfigDict,
    fixed: tuple[str, ...],
    position: Callable[[int], dict[str, Any]],
    like: TrainState,
    check: Callable[[Mapping[str, Any], int], object] = lambda meta, step: None,
) -> Resumed | None:
    """Restores the newest step that is whole, or returns None when no step was ever finished.

    A damaged step is named in a warning and, once an older one was read, set aside.

    Args:
      checkpoints: of the workdir, whose lock this run holds.
      config: the configuration of this run; reads checkpoint.on_corrupt.
      fixed: as for `check_resume`.
      position: step -> `data_position` of the data set as it is now.
      like: the state as shapes with shardings.
      check: (meta of the manifest, step) -> raises for what else a resumed run may not change.

    Raises:
      ConfigError: a fixed key changed, or what `check` refuses.
      CheckpointError: another model, or a step of a later version; or damage, where
        `checkpoint.on_corrupt` is "fail" or no step is whole.
      StorageError: the disk refuses, which is not taken for damage.
    """
    kept: Any = config.checkpoint
    damaged: list[int] = []
    for step in first_says(checkpoints.numbers()):
        try:
            found = checkpoints.manifest_everywhere(step)
            if found is None:
                continue
            changed = check_resume(found.meta, config, fixed, position(step))
            check(found.meta, step)
            state = checkpoints.restore(step, like)
        except DamagedStep as error:
            if kept.on_corrupt == "fail":
                raise
            warn(str(error))
            damaged.append(step)
            continue
        for number in damaged:
            checkpoints.set_aside(number)
        owes = step > 0 and evaluates(config, step) and not found.metrics
        return Resumed(step, state, changed, owes)
    if damaged:
        raise CheckpointError(
            f"No step in {checkpoints.directory} is whole: {', '.join(map(str, damaged))} "
            f"{'are' if len(damaged) > 1 else 'is'} damaged. Restore the directory from a copy, or "
            "start again in another --workdir."
        )
    return None


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
    before = meta.get("config", {})
    changes = config_lib.differences(before, config_lib.flatten(config))
    lines = {key: f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items()}
    # A key that came after the run was made decides nothing of it.
    broken = [line for key, line in lines.items() if key in before and key.startswith(fixed)]
    if broken:
        raise ConfigError(
            f"The run in this workdir was made with another configuration ({'; '.join(broken)}), "
            "and its weights or its data position mean something else now. Use a new --workdir, or "
            "set these keys back."
        )
    moved = position_changes(meta.get("data", {}), position)
    return [*lines.values(), *moved, *environment_changes(meta)]


def environment_changes(meta: Mapping[str, Any]) -> list[str]:
    """What is different from when a step was saved, and may change the last bits of what follows,
    one line each.
    """
    now = {"versions": describe_versions(), **environment()}
    lines = []
    for section, values in now.items():
        changes = config_lib.differences(meta.get(section, values), values)
        lines += [f"{section}.{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items()]
    return lines


def keep_summary(workdir: Path, title: str, rows: Mapping[str, str], result: dict) -> None:
    """Prints the summary of a finished run and keeps it as JSON, with the figures in `result` and
    a digest, by which it is recognised.
    """
    content = {**result, "rows": dict(rows)}
    text = json.dumps({**content, "sha256": _digest(content)}, indent=2, default=float)
    write(workdir / SUMMARY, text + "\n")
    print(summary(title, list(rows.items())), flush=True)


def _digest(content: dict[str, Any]) -> str:
    """Of what JSON makes of it: an array's float is a number there."""
    return seal_of(json.loads(json.dumps(content, default=float)))


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """What `keep_summary` wrote; None where it wrote nothing.

    Raises:
      DataError: there is something else, or what it wrote was changed.
    """
    path = workdir / SUMMARY
    if not os.path.lexists(path):
        return None
    found = read_json(path, error=DataError)
    if seal_of({k: v for k, v in found.items() if k != "sha256"}) != found.get("sha256"):
        raise DataError(f"{shown(path)} is not what the run wrote: its SHA-256 is another.")
    return found


def report_complete(workdir: Path, done: int, steps: int) -> None:
    """Says that there is nothing left to do, and repeats the summary."""
    kept = None
    try:
        kept = read_summary(workdir)
    except DataError as error:
        warn(f"{error} It is left as it is, and not shown.")
    # A run that was killed after its last save has none, or that of fewer steps.
    whole = kept is not None and kept.get("step") == done
    rows = kept["rows"] if kept and whole else {"checkpoints": str(workdir / "checkpoints")}
    print(summary(f"Complete: {done} steps are done, {steps} were asked for.", list(rows.items())))
    print("\nTo go on, ask for more: --config.steps=N.")
