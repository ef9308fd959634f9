"""Checkpoints: Orbax, asynchronous, the newest few and the best one kept, plain names inside.

A step holds two items: `state`, a flat dictionary of arrays whose names are the weight names
(`params/stem.conv.kernel`, `opt_state/1/trace/stem.conv.kernel`), and `meta`, JSON with the
resolved configuration, the data position and versions. Restoring takes the shardings of the running
mesh, so another device count is nothing special.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from trainlib.errors import CheckpointError, StorageError
from trainlib.state import TrainState


def to_flat(state: TrainState) -> dict[str, Any]:
    """State -> {name: leaf}; names are the paths through the state, joined by '/'."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def from_flat(flat: Mapping[str, Any], like: TrainState) -> TrainState:
    """Inverse of `to_flat`, for a state of the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in to_flat(like)])


class Checkpoints:
    """The checkpoints of one run, below `directory`.

    Args:
      directory: made when missing.
      keep: how many of the newest steps stay.
      best: name of the metric whose best step stays as well ("" for none).
      larger_is_better: the direction of `best`.
    """

    def __init__(
        self, directory: Path, *, keep: int = 3, best: str = "", larger_is_better: bool = True
    ):
        # Orbax reports every phase of a save at INFO; a run's own progress line is enough.
        logging.set_verbosity(logging.ERROR)
        self.directory = Path(directory).absolute()
        worst = float("-inf") if larger_is_better else float("inf")
        keepers: list[Any] = [policies.LatestN(keep)]
        if best:
            keepers.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics.get(best, worst),
                    reverse=not larger_is_better,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keepers),
            enable_async_checkpointing=True,
            create=True,
            step_prefix=None,
        )
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise storage_error(error, self.directory) from None

    def latest(self) -> int | None:
        """Number of the newest finished step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All finished steps, ascending."""
        return sorted(self._manager.all_steps())

    def pick(self, step: int | None) -> int:
        """The step that was asked for, or the newest.

        Raises:
          CheckpointError: it is not there; names those that are.
        """
        steps = self.steps()
        number = steps[-1] if steps and step is None else step
        if number is None or number not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"{self.directory} holds no step {'' if step is None else step}; steps there: "
                f"{there}. Train first, or choose another --workdir or --step."
            )
        return number

    def save(
        self,
        step: int,
        state: TrainState,
        meta: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts an asynchronous save; arrays are copied before it returns.

        Raises:
          StorageError: when the disk refuses now, or refused the save before this one.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(to_flat(state)), meta=ocp.args.JsonSave(meta)
        )
        try:
            self._manager.save(step, args=args, metrics=metrics or None, force=True)
        except (OSError, ValueError) as error:
            raise storage_error(error, self.directory) from None

    def wait(self) -> None:
        """Blocks until the save under way is finished.

        Raises:
          StorageError: when it failed.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise storage_error(error, self.directory) from None

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON item of a step.

        Raises:
          CheckpointError: when it cannot be read.
        """
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )
        except Exception as error:  # Orbax raises a bare Exception for a damaged file.
            raise _damaged(self.directory, step, error) from error
        return restored["meta"]

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a step into the shapes, dtypes and shardings of `like`.

        Raises:
          CheckpointError: when it cannot be read, or holds another model (names what differs).
        """
        wanted = to_flat(like)
        self._check_structure(step, wanted)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            )
        except Exception as error:
            raise _damaged(self.directory, step, error) from error
        return from_flat(restored["state"], like)

    def restore_some(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Reads the named leaves of a step alone, for evaluation or for starting another model.

        Raises:
          CheckpointError: it cannot be read, or lacks a name or has it in another shape or type.
        """
        self._check_structure(step, wanted, whole=False)
        args = ocp.args.PyTreeRestore(
            item=dict(wanted),
            restore_args=ocp.checkpoint_utils.construct_restore_args(dict(wanted)),
            partial_restore=True,
        )
        try:
            with ocp.PyTreeCheckpointer() as reader:
                return reader.restore(self.directory / str(step) / "state", args=args)
        except Exception as error:
            raise _damaged(self.directory, step, error) from error

    def shapes(self, step: int) -> dict[str, Any]:
        """Name -> metadata (shape, dtype) of every leaf of a step, without reading arrays.

        Raises:
          CheckpointError: when there is no such step or its metadata cannot be read.
        """
        try:
            with ocp.PyTreeCheckpointer() as reader:
                return dict(
                    reader.metadata(self.directory / str(step) / "state").item_metadata.tree
                )
        except Exception as error:
            raise _damaged(self.directory, step, error) from error

    def _check_structure(self, step: int, wanted: Mapping[str, Any], *, whole: bool = True) -> None:
        stored = self.shapes(step)
        problems = [f"missing in the checkpoint: {n}" for n in wanted if n not in stored]
        problems += [f"not in this model: {n}" for n in stored if whole and n not in wanted]
        problems += [
            f"{n}: {tuple(stored[n].shape)} {stored[n].dtype} in the checkpoint, "
            f"{tuple(x.shape)} {x.dtype} here"
            for n, x in wanted.items()
            if n in stored
            and (tuple(stored[n].shape) != tuple(x.shape) or stored[n].dtype != x.dtype)
        ]
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointError(
                f"Step {step} in {self.directory} holds another model: {'; '.join(problems[:5])}"
                f"{more}. Start in a new --workdir, or give the configuration that it was "
                "saved with (config.json beside the checkpoints)."
            )

    def close(self) -> None:
        """Finishes what is under way and stops the writer."""
        self.wait()
        self._manager.close()


def storage_error(error: Exception, where: Path) -> StorageError:
    """One paragraph for a disk that refuses."""
    text = str(error)
    full = "RESOURCE_EXHAUSTED" in text or getattr(error, "errno", None) == errno.ENOSPC
    reason = "the disk is full" if full else text.split("\n")[0][:300]
    return StorageError(
        f"Writing to {where} failed: {reason}. Steps saved before are intact. Free space or "
        "choose another --workdir, then start the same command again."
    )


def _damaged(directory: Path, step: int, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(
        f"Step {step} in {directory} cannot be read: {str(error).splitlines()[0][:300]}. "
        f"Remove the directory {directory / str(step)} to go on from an older step."
    )


def describe_versions() -> dict[str, str]:
    """Versions of what decides bits on disk and numbers in training."""
    from importlib.metadata import version

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: version(name) for name in packages}
