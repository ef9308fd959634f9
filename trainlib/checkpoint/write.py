"""Writing the steps of a run: Orbax in the background, then the manifest, then retention.

Order is what makes a kill harmless. Orbax writes into a temporary directory and renames it; the
manifest comes after that, and only then an older step is removed, by a rename first. So at any
moment as many good steps lie on the disk as before the save began, and whatever was cut off is
recognised by its name or by its missing manifest.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from trainlib import files
from trainlib.checkpoint import digest, manifest
from trainlib.errors import NumericAbort, StorageError, paragraph

REMOVED = ".removing"  # ends the name of a step that retention was removing
DAMAGED = ".damaged"  # ends the name of a step that was set aside
# Directories that Orbax had not finished or retention not removed, when a run was cut off.
LEFT_BEHIND = re.compile(rf"\d+(\.orbax-checkpoint-tmp.*|{re.escape(REMOVED)})")


def _hush(old: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Orbax closes its event loop on a failed write while parts of it are still under way; Python
    would print a traceback for each of them, over the one line that says what happened.
    """

    def hook(arguments: Any) -> None:
        if str(arguments.exc_value) != "Event loop is closed":
            old(arguments)

    return hook


class Saver:
    """Saves steps of one run below `directory`.

    Args:
      directory: made when missing.
      keep: how many of the newest good steps stay.
      best: name of the metric whose best step stays as well ("" for none).
      larger_is_better: the direction of `best`.
      may_fail: saves in a row that may fail with a warning.
      compress: arrays by zstd.
      axes: weight name -> logical axes, for the manifest.
      good: -> {number: manifest} of the steps that count.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        best: str,
        larger_is_better: bool,
        may_fail: int,
        compress: bool,
        axes: Mapping[str, tuple[str | None, ...]],
        good: Callable[[], dict[int, manifest.Manifest]],
    ):
        import orbax.checkpoint as ocp

        self.directory = directory
        self._keep, self._best, self._larger = keep, best, larger_is_better
        self._may_fail, self._axes, self._good = may_fail, axes, good
        # Made in the background and refused, a directory is awaited by Orbax for five minutes.
        options = ocp.AsyncOptions(create_directories_asynchronously=False)
        handler = ocp.PyTreeCheckpointHandler(use_compression=compress)
        self._orbax = ocp.AsyncCheckpointer(handler, async_options=options)
        # One failed write leaves a hundred futures, and asyncio reports each with a traceback.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._old_hook, sys.unraisablehook = sys.unraisablehook, _hush(sys.unraisablehook)
        self._arguments = ocp.args.PyTreeSave
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        self._failed = 0  # saves in a row that failed
        self._error: Exception | None = None
        self._main = jax.process_index() == 0
        try:
            if self._main:
                directory.parent.mkdir(parents=True, exist_ok=True)
                files.make_directory(directory)
                files.sync(directory.parent)
                self._sweep()
        except OSError as error:
            raise storage_error(error, directory) from None

    def start(
        self, step: int, flat: Mapping[str, Any], meta: Mapping[str, Any], metrics: dict[str, float]
    ) -> None:
        """Starts saving; the arrays are copied before it returns.

        Raises:
          NumericAbort: a value is NaN or infinite; nothing was written.
          StorageError: too many saves in a row failed, this one or those before.
        """
        self.wait()
        try:
            if step in self._good():
                return
        except Exception as error:
            self._miss(step, error)
            return
        prints = digest.fingerprints(flat)
        refuse_not_finite(step, prints, self.directory)
        entry = manifest.Manifest(
            step=step,
            leaves={name: self._leaf(name, flat[name], prints[name].digest) for name in flat},
            files={},
            mesh=_mesh(flat),
            meta=meta,
            metrics=metrics,
        )
        target = self.directory / str(step)
        try:
            if self._main and os.path.lexists(target):
                set_aside(target)
            self._orbax.save(target, args=self._arguments(dict(flat)))
        except Exception as error:
            self._miss(step, error)
            return
        self._pending = step, self._thread.submit(self._finish, target, entry)

    def poll(self) -> None:
        """Takes note of a save that has ended; never blocks. Raises like `wait`."""
        if self._pending and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Blocks until the save under way has ended.

        Raises:
          StorageError: it failed, and so did as many before it as may fail.
        """
        if self._pending is None:
            return
        step, future = self._pending
        self._pending = None
        try:
            future.result()
        except Exception as error:
            self._miss(step, error)
        else:
            self._failed, self._error = 0, None

    def close(self) -> None:
        """Finishes what is under way.

        Raises:
          StorageError: the last save failed, whatever the policy: nothing will repeat it.
        """
        self.wait()
        self._thread.shutdown()
        self._orbax.close()
        sys.unraisablehook = self._old_hook
        if self._error is not None:
            raise storage_error(self._error, self.directory)

    def _finish(self, target: Path, entry: manifest.Manifest) -> None:
        self._orbax.wait_until_finished()
        if not self._main:
            return
        files = dict(manifest.files_of(target))
        manifest.write(target, dataclasses.replace(entry, files=files))
        try:
            self._retain(entry.step)
        except (OSError, StorageError) as error:
            warn(
                f"Step {entry.step} is saved, but older steps could not be removed from "
                f"{self.directory} ({reason(error)}). The next save tries again; until then they "
                "take room."
            )

    def _retain(self, newest: int) -> None:
        good = self._good()
        stay = {newest, *sorted(good)[-self._keep :]}
        best = manifest.best(good, self._best, larger_is_better=self._larger)
        if best is not None:
            stay.add(best)
        for step in good.keys() - stay:
            path = self.directory / str(step)
            os.replace(path, path.with_name(path.name + REMOVED))
        for path in self.directory.glob(f"*{REMOVED}"):  # what an earlier save left as well
            if LEFT_BEHIND.fullmatch(path.name):
                shutil.rmtree(path)

    def _sweep(self) -> None:
        """Removes what earlier runs were writing or removing when they were cut off."""
        for path in self.directory.iterdir():
            if LEFT_BEHIND.fullmatch(path.name):
                if path.is_symlink():
                    path.unlink()  # never what it names
                shutil.rmtree(path, ignore_errors=True)

    def _miss(self, step: int, error: Exception) -> None:
        self._failed, self._error = self._failed + 1, error
        if self._main:
            with contextlib.suppress(OSError):
                self._sweep()
        problem = storage_error(error, self.directory)
        if self._failed > self._may_fail:
            raise problem from error
        left = self._may_fail - self._failed
        warn(
            f"Step {step} was not saved ({reason(error)}). Training goes on, and the steps saved "
            f"before are intact; the run stops with exit code {StorageError.exit_code} when "
            f"{'the next save' if not left else f'{left + 1} more saves in a row'} fail"
            f"{'' if left else 's'}."
        )

    def _leaf(self, name: str, value: Any, fingerprint: str) -> manifest.Leaf:
        axes = self._axes.get(name.split("/")[-1])
        shape = tuple(value.shape)
        return manifest.Leaf(
            shape=shape,
            dtype=str(value.dtype),
            digest=fingerprint,
            axes=tuple(axes) if axes is not None and len(axes) == len(shape) else None,
            partition=_partition(value),
        )


def _mesh(flat: Mapping[str, Any]) -> dict[str, int]:
    for value in flat.values():
        sharding = getattr(value, "sharding", None)
        if isinstance(sharding, NamedSharding):
            return {str(name): int(size) for name, size in sharding.mesh.shape.items()}
    return {}


def _partition(value: Any) -> tuple[tuple[str, ...], ...] | None:
    sharding = getattr(value, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    named = [(p,) if isinstance(p, str) else tuple(p or ()) for p in sharding.spec]
    return tuple(named + [()] * (value.ndim - len(named)))


def refuse_not_finite(
    step: int, fingerprints: Mapping[str, digest.Fingerprint], directory: Path
) -> None:
    """Keeps a state with NaN or infinite values from being saved.

    Raises:
      NumericAbort: names the leaves.
    """
    bad = [f"{name} ({f.not_finite:,} values)" for name, f in fingerprints.items() if f.not_finite]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise NumericAbort(
            f"The state after step {step} holds values that are NaN or infinite: "
            f"{', '.join(bad[:5])}{more}. It was not saved; the steps in {directory} are as they "
            "were. Lower schedule.learning_rate, lengthen schedule.warmup_steps or set "
            "optimizer.clip_norm, and start again from there."
        )


def set_aside(path: Path) -> Path:
    """Renames a step that does not count, so that nothing takes it for one; returns its new path,
    which has a number where one was set aside before.

    Raises:
      OSError: the disk refuses.
    """
    names = (f"{path.name}{DAMAGED}{f'-{n}' if n > 1 else ''}" for n in itertools.count(1))
    aside = next(p for name in names if not os.path.lexists(p := path.with_name(name)))
    os.replace(path, aside)
    return aside


def warn(text: str) -> None:
    """Prints a warning as a paragraph on standard error, in the first process alone."""
    if jax.process_index() == 0:
        print(f"\n{paragraph(f'warning: {text}')}", file=sys.stderr, flush=True)


def reason(error: Exception) -> str:
    """Why the disk refused, in a few words."""
    text = str(error)
    full = (
        "RESOURCE_EXHAUSTED" in text
        or "No space left" in text
        or getattr(error, "errno", None) == errno.ENOSPC
    )
    return "the disk is full" if full else (text or type(error).__name__).split("\n")[0][:300]


def storage_error(error: Exception, where: Path) -> StorageError:
    """One paragraph for a disk that refuses."""
    return StorageError(
        f"Writing to {where} failed: {reason(error)}. Steps saved before are intact. Free space "
        "or choose another --workdir, then start the same command again."
    )
