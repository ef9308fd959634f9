"""The directory of a run: what lies in it, who may write there, and opening it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from trainlib import config as settings
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.checkpoint.manifest import larger_is_better
from trainlib.checkpoint.workdir_lock import NAME as LOCK_NAME
from trainlib.checkpoint.workdir_lock import WorkdirLock
from trainlib.checkpoint.write import storage_error
from trainlib.errors import (
    CheckpointError,
    ConfigError,
    NumericAbort,
    StorageError,
    UserError,
    one_of,
    shown,
)
from trainlib.files import check_target, make_directory, write_atomically
from trainlib.model.weights import Abstract
from trainlib.report import samples
from trainlib.run import peers
from trainlib.step import profile
from trainlib.untrusted_files import read_small

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
ORIGIN = "config_origin.json"  # where each value of the configuration was set
CLASS_NAMES, PICTURES = "class_names.txt", ("curves.png", "expert_load.png")
# What a run writes into its workdir, and what says that a workdir is one.
_FILES = (LOCK_NAME, CONFIG, ORIGIN, METRICS, CLASS_NAMES, SUMMARY, *PICTURES)
_FOLDERS = ("checkpoints", "tensorboard", profile.FOLDER, samples.FOLDER)
_BESIDE = (".log", ".out", ".err", ".txt", ".md", ".sh")
_NAMED = 3  # files that an error lists
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
            values = settings.read_json(config)
        except UserError as error:
            return f"its {CONFIG} is none that a run wrote ({error})"
        return "" if "family" in values else f"its {CONFIG} is of another program, without `family`"
    if (workdir / LOCK_NAME).exists():  # a run that was stopped before it had written more
        return ""
    with os.scandir(workdir) as entries:
        there = sorted(entry.name for entry in entries if not _is_beside(entry))
    if not there:
        return ""
    more = f" and {len(there) - _NAMED:,} more" if len(there) > _NAMED else ""
    return f"it holds {shown(', '.join(there[:_NAMED]))}{more}, and no {CONFIG} of a run"


def _is_beside(entry: os.DirEntry[str]) -> bool:
    """Whether a file may lie in a new workdir: hidden ones, and logs and notes of a launcher."""
    name = entry.name
    hidden_or_note = name.startswith(".") or Path(name).suffix in _BESIDE
    return hidden_or_note and name not in (*_FILES, *_FOLDERS) and entry.is_file()


def make(workdir: Path) -> None:
    """Makes the directory that `--workdir` names.

    Raises:
      StorageError: it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"--workdir={shown(workdir)} cannot be made: {error.strerror}. Choose a directory that "
            "you may write to."
        ) from None


def open_workdir(config: ConfigDict, workdir: Path, abstract: Abstract) -> Checkpoints:
    """Makes the workdir, takes its lock and opens its checkpoints; closing them gives it back.

    Raises:
      ConfigError: another run is at work there, or it is no workdir, see `check_workdir`.
      StorageError: the directory cannot be made or written.
    """
    make(workdir)
    check_workdir(workdir)
    options = config.checkpoint
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        keep=options.keep,
        best=options.best,
        larger_is_better=larger_is_better(options.best),
        may_fail=options.max_failed_saves,
        compress=options.compress,
        axes={n: s.axes for n, s in {**abstract.params, **abstract.model_state}.items()},
        lock=WorkdirLock(workdir) if jax.process_index() == 0 else None,
    )
    _opened.append(checkpoints)
    return checkpoints


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
    content = "not there"
    if path.exists():
        content = read_small(path, 4096, error=ConfigError).decode(errors="replace")
    peers.agree({f"{LOCK_NAME} in --workdir, a directory that all hosts must share,": content})


def check_best(config: ConfigDict, measured: Iterable[str]) -> None:
    """Refuses a `checkpoint.best` that no evaluation of the run will give.

    Args:
      config: of the run.
      measured: names of what its evaluations give.

    Raises:
      ConfigError: names those that they give.
    """
    best, names = config.checkpoint.best, list(measured)
    if best and best not in names:
        raise one_of("checkpoint.best", best, names)


def best_step(config: ConfigDict, workdir: Path) -> int:
    """What `--step=best` means: the saved step with the best evaluation by `checkpoint.best`.

    Raises:
      ConfigError: the run has no such metric.
      CheckpointError: no step was evaluated.
    """
    metric = config.checkpoint.best
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


def write_text(path: Path, text: str) -> None:
    """Replaces a file of a workdir as a whole.

    Raises:
      StorageError: the disk refuses.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        raise storage_error(error, path) from None


def save_config(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved configuration, from which `--config=WORKDIR/config.json` starts, and
    where each of its values was set, as far as that is known.
    """
    write_text(workdir / CONFIG, settings.to_json(config))
    if origin := settings.origin_of(config):
        write_text(workdir / ORIGIN, json.dumps(origin, indent=2) + "\n")


@contextlib.contextmanager
def evidence_kept(directory: Path) -> Iterator[None]:
    """Inside, the evidence of a `NumericAbort` is written into a directory, by the first of several
    processes.

    Raises:
      NumericAbort: that one, with the place of the file, or with the reason why there is none.
    """
    try:
        yield
    except NumericAbort as error:
        if error.evidence is None:
            raise
        name, text = error.evidence
        path = directory / name
        where = f"What was found is in {shown(path)}."
        if jax.process_index() == 0:
            try:
                write_atomically(path, text)
            except (OSError, UserError) as refused:
                # The first trouble is the one to mend, and decides the exit code.
                where = f"{shown(path)}, with what was found, cannot be written: {refused}"
        raise NumericAbort(f"{error} {where}", error.evidence) from None
