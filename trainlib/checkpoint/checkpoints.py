"""Checkpoints: Orbax for the arrays, a manifest to trust them by, plain names inside.

A step is a directory `checkpoints/NUMBER`: a flat dictionary of arrays in Orbax's format, whose
names are the weight names (`params/stem.conv.kernel`, `opt_state/1/trace/stem.conv.kernel`), and
`manifest.json` (`trainlib.checkpoint.manifest`). A step without a manifest does not count. Whatever
is read is compared with the digests that were taken of the arrays on the devices before they were
saved, so nothing between there and here goes unseen. Restoring takes the shardings of the running
mesh, so another device count is nothing special.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from trainlib.checkpoint import damage, digest, manifest
from trainlib.checkpoint import read as reading
from trainlib.checkpoint import write as saving
from trainlib.checkpoint.manifest import Manifest
from trainlib.checkpoint.workdir_lock import WorkdirLock
from trainlib.errors import CheckpointError, StorageError, UserError, one_of
from trainlib.step.train_state import TrainState


class UnfinishedStep(CheckpointError):
    """A step whose save was never finished, or that is not one of ours."""


class DamagedStep(CheckpointError):
    """A step that was finished once and is not what was written; an older one may be."""


# What processes may find instead of a manifest, the one that decides for all of them last.
_FINDINGS = (type(None), UnfinishedStep, DamagedStep, CheckpointError, StorageError)
COUNTS = "counts"  # the leaf of `TrainState.counts`
_GONE = reading.REFUSED + 1


def to_flat(state: TrainState) -> dict[str, Any]:
    """State -> {name: leaf}; names are the paths through the state, joined by '/'."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def from_flat(flat: Mapping[str, Any], like: TrainState) -> TrainState:
    """Inverse of `to_flat`, for a state of the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in to_flat(like)])


class Checkpoints:
    """The checkpoints of one run, below `directory`; nothing is written before the first `save`.

    Args:
      directory: made by the first save when missing.
      keep: how many of the newest good steps stay.
      best: name of the metric whose best step stays as well ("" for none).
      larger_is_better: the direction of `best`.
      may_fail: saves in a row that may fail with a warning; the next one is a StorageError.
      compress: arrays by zstd, which any version reads; float32 weights become 7 % smaller, and
        a save and a restore take about twice the CPU time.
      axes: weight name -> logical axes, for the manifest.
      lock: released by `close`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 3,
        best: str = "",
        larger_is_better: bool = True,
        may_fail: int = 0,
        compress: bool = False,
        axes: Mapping[str, tuple[str | None, ...]] | None = None,
        lock: WorkdirLock | None = None,
    ):
        # Orbax reports every phase of a save at INFO; a run's own progress line is enough.
        logging.set_verbosity(logging.FATAL)
        self.directory = Path(directory).absolute()
        self._lock = lock
        self._saver: saving.Saver | None = None
        self._saving: dict[str, Any] = {
            "keep": keep,
            "best": best,
            "larger_is_better": larger_is_better,
            "may_fail": may_fail,
            "compress": compress,
            "axes": axes or {},
        }

    # ---------------------------------------------------------------- what is there
    def numbers(self) -> list[int]:
        """Everything that is named like a step, newest first, whole or not.

        Raises:
          StorageError: the directory cannot be listed.
        """
        try:
            names = reading.patiently(lambda: os.listdir(self.directory))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise reading.refused(str(error.strerror), self.directory) from None
        return sorted({int(n) for n in names if n.isdecimal() and str(int(n)) == n}, reverse=True)

    def manifests(self) -> dict[int, Manifest]:
        """Number -> manifest of the steps that count, ascending. Arrays are not read.

        Raises:
          StorageError: the disk refuses.
        """
        manifests_by_step = {}
        for number in reversed(self.numbers()):
            try:
                manifests_by_step[number] = self.manifest(number)
            except CheckpointError:
                continue
        return manifests_by_step

    def steps(self) -> list[int]:
        """The steps that count, ascending."""
        return list(self.manifests())

    def latest(self) -> int | None:
        """Number of the newest step that counts, or None."""
        return max(self.steps(), default=None)

    def pick(self, step: int | None) -> int:
        """The step that was asked for, or the newest that counts; a newer one whose manifest says
        that it is damaged is named in a warning.

        Raises:
          CheckpointError: it is not there, or damaged; names those that are there.
        """
        numbers = self.numbers()
        if step is not None and step in numbers:
            return self.manifest(step).step
        for number in numbers if step is None else ():
            try:
                return self.manifest(number).step
            except UnfinishedStep:
                continue
            except CheckpointError as error:
                saving.warn(str(error))
        there = ", ".join(map(str, self.steps())) or "none"
        raise CheckpointError(
            f"{self.directory} holds no {'whole step' if step is None else f'step {step}'}; steps "
            f"there: {there}. Train first, or choose another --workdir or --step."
        )

    def best(self) -> int:
        """The step that counts whose evaluation is the best by the metric `best`; one whose
        manifest says that it is damaged is named in a warning.

        Raises:
          ConfigError: no step was measured by that metric, but by others.
          CheckpointError: no step was measured at all.
        """
        metric, manifests = self._saving["best"], {}
        for number in self.numbers():
            try:
                manifests[number] = self.manifest(number)
            except UnfinishedStep:
                continue
            except CheckpointError as error:
                saving.warn(str(error))
        larger = self._saving["larger_is_better"]
        step = manifest.best(manifests, metric, larger_is_better=larger)
        if step is not None:
            return step
        measured = {name for entry in manifests.values() for name in entry.metrics}
        if measured:
            raise one_of("checkpoint.best", metric, measured)
        raise CheckpointError(
            f"No step in {self.directory} holds an evaluation, so none is the best; steps there: "
            f"{', '.join(map(str, manifests)) or 'none'}. Choose one by --step=N."
        )

    def manifest(self, step: int) -> Manifest:
        """What stands in the manifest of a step; file sizes are compared, arrays are not read.

        Raises:
          DamagedStep: it is not what was written.
          UnfinishedStep: the step was never finished, or is not one of ours.
          CheckpointError: a later version of this code wrote it, or it was removed just now.
          StorageError: the disk refuses.
        """
        path = self.directory / str(step)
        try:
            found = reading.patiently(lambda: manifest.read(path))
        except manifest.NoManifest as error:
            raise UnfinishedStep(
                f"Step {step} in {self.directory} does not count: {error}. It is left alone."
            ) from None
        except manifest.BadManifest as error:
            raise (
                self._removed(step) if self._gone(step) else self._damaged(step, str(error))
            ) from None
        except manifest.UnknownFormat as error:
            raise CheckpointError(
                f"Step {step} in {self.directory} was written by a later version: its "
                f"{manifest.NAME} has {error}. It is left alone. Update this package, or choose "
                "another --workdir or --step."
            ) from None
        except OSError as error:
            raise reading.refused(str(error.strerror), path) from None
        if found.step != step:
            raise self._damaged(step, f"its manifest is that of step {found.step}")
        return found

    def manifest_everywhere(self, step: int) -> Manifest | None:
        """`manifest`, with one answer for all processes; None and a warning for what never counted.

        Raises:
          UserError: as `manifest`, and the same in all processes.
        """
        found, failure = None, None
        try:
            found = self.manifest(step)
        except UserError as error:
            failure = error
        finding = _FINDINGS[worst(_FINDINGS.index(type(failure)))]
        if finding is type(None):
            return found
        if not isinstance(failure, finding):
            failure = finding(
                f"Step {step} in {self.directory} cannot be used: another process of this run "
                "says why."
            )
        if finding is not UnfinishedStep:
            raise failure
        saving.warn(str(failure))
        return None

    def meta(self, step: int) -> dict[str, Any]:
        """What the run said of itself at a step: config, data position, versions, random numbers.

        Raises:
          CheckpointError: as `manifest`.
        """
        return dict(self.manifest(step).meta)

    def shapes(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Name -> shape and dtype of every leaf of a step, without reading arrays.

        Raises:
          CheckpointError: as `manifest`.
        """
        leaves = self.manifest(step).leaves.items()
        return {n: jax.ShapeDtypeStruct(leaf.shape, _dtype(leaf.dtype)) for n, leaf in leaves}

    # ---------------------------------------------------------------- reading
    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a step into the shapes, dtypes and shardings of `like`, and verifies every leaf.

        A step of an earlier release has no counts of updates; they are 0, nobody counted.

        Raises:
          DamagedStep: it is not what was written; names file, leaf, expected and actual digest.
          CheckpointError: it was never finished, was removed while it was read, or holds another
            model (names what differs).
          StorageError: the disk refuses, or memory is short.
        """
        wanted = to_flat(like)
        if COUNTS in wanted and COUNTS not in self.manifest(step).leaves:
            place = wanted.pop(COUNTS)
            uncounted = jax.device_put(np.zeros(place.shape, place.dtype), place.sharding)
            return from_flat(self._read(step, wanted, whole=True) | {COUNTS: uncounted}, like)
        return from_flat(self._read(step, wanted, whole=True), like)

    def restore_some(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Reads and verifies the named leaves alone, for evaluation or for starting another model.

        Raises:
          CheckpointError: as `restore`.
        """
        return self._read(step, wanted, whole=False)

    def _read(self, step: int, wanted: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        found = self.manifest(step)
        self._check_structure(found, wanted, whole=whole)
        read, damaged = self._verified(found, wanted)
        if damaged:
            raise self._damaged(step, next(iter(damaged.values())))
        return read

    def damaged_leaves(
        self, found: Manifest, wanted: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, str]:
        """Leaf -> what is wrong with it, of the named leaves that are not what was saved.

        Raises:
          CheckpointError: the step was removed while it was read.
          StorageError: the disk refuses, or memory is short.
        """
        return self._verified(found, wanted)[1]

    def _verified(
        self, found: Manifest, wanted: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Reads leaves and compares digests: (name -> array, name -> what is wrong with it)."""
        path = self.directory / str(found.step)
        read, troubles = reading.read(path, wanted)
        own = max((t.kind for t in troubles.values()), default=0)
        kind = worst(_GONE if own and self._gone(found.step) else own)
        if kind == _GONE:
            raise self._removed(found.step)
        if kind > reading.DAMAGED:
            texts = [t.text for t in troubles.values() if t.kind == kind]
            problem = reading.refused if kind == reading.REFUSED else reading.too_large
            raise problem(texts[0] if texts else "what another process names", path)
        damaged = {
            name: f"leaf {name} {t.text}; its digest was {found.leaves[name].digest}"
            for name, t in troubles.items()
        }
        if kind and jax.process_count() > 1:  # digests take all processes, with all leaves
            return {}, damaged or {"": "another process says why"}
        for name, fingerprint in digest.fingerprints(read).items():
            expected = found.leaves[name].digest
            if fingerprint.digest != expected:
                damaged[name] = (
                    f"leaf {name} in {damage.file_of(path, name)} has digest "
                    f"{fingerprint.digest}, and {expected} was saved"
                )
        return read, damaged

    def _check_structure(self, found: Manifest, wanted: Mapping[str, Any], *, whole: bool) -> None:
        stored = found.leaves
        problems = [f"missing in the checkpoint: {n}" for n in wanted if n not in stored]
        problems += [f"not in this model: {n}" for n in stored if whole and n not in wanted]
        problems += [
            f"{n}: {stored[n].shape} {stored[n].dtype} in the checkpoint, "
            f"{tuple(x.shape)} {x.dtype} here"
            for n, x in wanted.items()
            if n in stored and (stored[n].shape != tuple(x.shape) or stored[n].dtype != x.dtype)
        ]
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointError(
                f"Step {found.step} in {self.directory} holds another model: "
                f"{'; '.join(problems[:5])}{more}. Start in a new --workdir, or give the "
                "configuration that it was saved with (config.json beside the checkpoints)."
            )

    def _gone(self, step: int) -> bool:
        """Whether retention of a live run removed a step, which it begins by renaming it."""
        return not os.path.lexists(self.directory / str(step) / manifest.NAME)

    def _removed(self, step: int) -> CheckpointError:
        return CheckpointError(
            f"Step {step} in {self.directory} was removed while it was read: the run at work there "
            f"keeps the newest steps alone. There are now {self.numbers()}: start the same command "
            "again, or raise checkpoint.keep of that run."
        )

    def _damaged(self, step: int, what: str) -> DamagedStep:
        others = [str(number) for number in self.numbers() if number != step]
        way_out = (
            f"Training goes on from the newest that is whole of {', '.join(others)}; other "
            "commands take its number."
            if others
            else "There is no other step."
        )
        return DamagedStep(f"Step {step} in {self.directory} is damaged: {what}. {way_out}")

    # ---------------------------------------------------------------- writing
    def save(
        self,
        step: int,
        state: TrainState,
        meta: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts an asynchronous save; arrays are copied before it returns.

        Raises:
          NumericAbort: the state holds NaN or infinite values; nothing was written.
          StorageError: when the disk refuses, or refused the save before this one, more often in a
            row than it may.
        """
        if self._saver is None:
            self._saver = saving.Saver(self.directory, good=self.manifests, **self._saving)
        self._saver.start(step, to_flat(state), meta, metrics or {})

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds an evaluation that was made up for to the manifest of a step; the first process does
        it for all.

        Raises:
          CheckpointError: as `manifest`.
          StorageError: the disk refuses.
        """
        if jax.process_index() != 0:
            return
        found = dataclasses.replace(self.manifest(step), metrics=dict(metrics))
        try:
            manifest.write(self.directory / str(step), found)
        except OSError as error:
            raise saving.storage_error(error, self.directory) from None

    def poll(self) -> None:
        """Takes note of a save that has ended, without waiting; raises like `wait`."""
        if self._saver:
            self._saver.poll()

    def wait(self) -> None:
        """Blocks until the save under way is finished.

        Raises:
          StorageError: it failed, and may not.
        """
        if self._saver:
            self._saver.wait()

    def set_aside(self, step: int) -> None:
        """Renames a step that does not count, so that it is in nobody's way, and says so. The first
        process does it for all.

        Raises:
          StorageError: the disk refuses.
        """
        if jax.process_index() != 0:
            return
        try:
            aside = saving.set_aside(self.directory / str(step))
        except OSError as error:
            raise saving.storage_error(error, self.directory) from None
        saving.warn(f"Step {step} was set aside as {aside}.")

    def close(self) -> None:
        """Finishes what is under way, stops the writer and lets go of the lock.

        Raises:
          StorageError: the last save failed.
        """
        try:
            if self._saver:
                self._saver.close()
        finally:
            self._saver = None
            if self._lock:
                self._lock.release()


def _dtype(name: str) -> Any:
    try:
        return jax.numpy.dtype(name)
    except TypeError:
        raise CheckpointError(f"A manifest names the type {name!r}, which JAX has not.") from None


def worst(kind: int) -> int:
    """The largest of the numbers that all processes of the run give; all of them must ask."""
    if jax.process_count() == 1:
        return kind
    return int(np.max(multihost_utils.process_allgather(np.array(kind))))


def first_says(numbers: list[int]) -> list[int]:
    """The list that the first process gives, in all processes; all of them must ask."""
    if jax.process_count() == 1:
        return numbers
    text = np.frombuffer(json.dumps(numbers).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text))))
    mine = text if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(mine)))


def describe_versions() -> dict[str, str]:
    """Versions of what decides bits on disk and numbers in training."""
    from importlib.metadata import version

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: version(name) for name in packages}
