"""Checkpoints: Orbax for the arrays, a manifest to trust them by, plain names inside.

A step is a directory `checkpoints/NUMBER`: a flat dictionary of arrays in Orbax's format, whose
names are the weight names (`params/stem.conv.kernel`, `opt_state/1/trace/stem.conv.kernel`), and
`manifest.json` (`trainlib.manifest`). A step without a manifest does not count. Whatever is read is
compared with the digests that were taken of the arrays on the devices before they were saved, so
nothing between there and here goes unseen. Restoring takes the shardings of the running mesh, so
another device count is nothing special.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from trainlib import damage, digest, manifest, saving
from trainlib.errors import CheckpointError
from trainlib.lock import WorkdirLock
from trainlib.manifest import Manifest
from trainlib.state import TrainState


class DamagedStep(CheckpointError):
    """A step that was finished once and is not what was written; an older one may be."""


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
            "axes": axes or {},
        }

    # ---------------------------------------------------------------- what is there
    def numbers(self) -> list[int]:
        """Everything that is named like a step, newest first, whole or not."""
        try:
            names = [path.name for path in self.directory.iterdir()]
        except OSError:
            return []
        return sorted({int(n) for n in names if n.isdecimal() and str(int(n)) == n}, reverse=True)

    def manifests(self) -> dict[int, Manifest]:
        """Number -> manifest of the steps that count, ascending. Arrays are not read."""
        found = {}
        for number in reversed(self.numbers()):
            try:
                found[number] = self.manifest(number)
            except CheckpointError:
                continue
        return found

    def steps(self) -> list[int]:
        """The steps that count, ascending."""
        return list(self.manifests())

    def latest(self) -> int | None:
        """Number of the newest step that counts, or None."""
        return max(self.steps(), default=None)

    def pick(self, step: int | None) -> int:
        """The step that was asked for, or the newest.

        Raises:
          CheckpointError: it is not there, or damaged; names those that are there.
        """
        steps = self.steps()
        if step is not None and step not in steps and step in self.numbers():
            self.manifest(step)
        number = steps[-1] if steps and step is None else step
        if number is None or number not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"{self.directory} holds no step {'' if step is None else step}; steps there: "
                f"{there}. Train first, or choose another --workdir or --step."
            )
        return number

    def manifest(self, step: int) -> Manifest:
        """What stands in the manifest of a step; file sizes are compared, arrays are not read.

        Raises:
          DamagedStep: it is not what was written.
          CheckpointError: the step was never finished, or is not one of ours.
        """
        try:
            found = manifest.read(self.directory / str(step))
        except manifest.NoManifest as error:
            raise CheckpointError(
                f"Step {step} in {self.directory} does not count: {error}. It is left alone."
            ) from None
        except manifest.BadManifest as error:
            raise self._damaged(step, str(error)) from None
        if found.step != step:
            raise self._damaged(step, f"its manifest is that of step {found.step}")
        return found

    def manifest_everywhere(self, step: int) -> Manifest | None:
        """`manifest`, with one answer for all processes; None and a warning for what never counted.

        Raises:
          DamagedStep: in some process, it is not what was written.
        """
        found, failure = None, None
        try:
            found = self.manifest(step)
        except CheckpointError as error:
            failure = error
        if agreed(found is not None):
            return found
        if not agreed(not isinstance(failure, DamagedStep)):
            damaged = isinstance(failure, DamagedStep)
            raise failure if damaged else self._damaged(step, "another process cannot read it")
        saving.warn(str(failure or f"Step {step} is not there for another process."))
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

        Raises:
          DamagedStep: it is not what was written; names file, leaf, expected and actual digest.
          CheckpointError: it was never finished, or holds another model (names what differs).
        """
        wanted = to_flat(like)
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
        args = ocp.args.PyTreeRestore(
            item=dict(wanted),
            restore_args=ocp.checkpoint_utils.construct_restore_args(dict(wanted)),
            partial_restore=True,
        )
        path, read, failure = self.directory / str(step), {}, ""
        try:
            # The handler and not a Checkpointer around it: that one waits for all processes, also
            # for one that could not read.
            found_there = ocp.PyTreeCheckpointHandler().restore(epath.Path(path), args=args)
            read = {name: found_there.get(name) for name in wanted}
            failure = _unlike(read, wanted)
        except Exception as error:  # Orbax raises a bare Exception for a damaged file.
            failure = (str(error) or type(error).__name__).splitlines()[0][:300]
        if not agreed(not failure):
            raise self._damaged(step, failure or "another process cannot read it")
        actual = digest.fingerprints(read)
        for name, fingerprint in actual.items():
            expected = found.leaves[name].digest
            if fingerprint.digest != expected:
                raise self._damaged(
                    step,
                    f"leaf {name} in {damage.file_of(path, name)} has digest "
                    f"{fingerprint.digest}, and {expected} was saved",
                )
        return read

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
        self._saver.wait()
        if step not in self.manifests():
            self._saver.start(step, to_flat(state), meta, metrics or {})

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
        if self._saver:
            self._saver.close()
            self._saver = None
        if self._lock:
            self._lock.release()


def _unlike(read: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What Orbax returned that nobody asked for, as it does when its metadata is damaged; or ""."""
    for name, like in wanted.items():
        value = read[name]
        if not isinstance(value, jax.Array | np.ndarray):
            return f"leaf {name} reads as {type(value).__name__}"
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            return f"leaf {name} reads as {value.shape} {value.dtype}"
    return ""


def _dtype(name: str) -> Any:
    try:
        return jax.numpy.dtype(name)
    except TypeError:
        raise CheckpointError(f"A manifest names the type {name!r}, which JAX has not.") from None


def agreed(good: bool) -> bool:
    """Whether something holds in every process of the run; all of them must ask."""
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def describe_versions() -> dict[str, str]:
    """Versions of what decides bits on disk and numbers in training."""
    from importlib.metadata import version

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: version(name) for name in packages}
