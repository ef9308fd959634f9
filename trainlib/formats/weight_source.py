"""The weights of a run, leaf by leaf: from its checkpoints or from a directory that was exported.

Whoever reads them here never holds more than `BATCH` bytes, or one leaf where that is larger.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import CheckpointError, ConfigError, one_of
from trainlib.formats import layout as interchange
from trainlib.formats import safetensors as safetensors_io
from trainlib.model import statistics
from trainlib.model.weights import Abstract, Spec
from trainlib.run.resume import checkpoint_meta
from trainlib.run.workdir import open_workdir, save_config, write_text
from trainlib.step.train_state import TrainState
from trainlib.untrusted_files import MIB, check_memory

BATCH = 32 * MIB  # small leaves are read together
RECORD = "export.json"  # says where exported weights come from
_M_MMAP_THRESHOLD = -3  # of malloc.h
WEIGHTS = ("auto", "ema", "raw")


def give_memory_back() -> None:
    """Lets freed arrays go back to the system at once, where the C library is glibc.

    Left alone, it learns from the first large array that such sizes come again, and keeps several.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MIB)


def nbytes(spec: Spec) -> int:
    """Bytes of a leaf."""
    return spec.size * np.dtype(spec.dtype).itemsize


def is_export(directory: Path) -> bool:
    """Whether a directory holds safetensors and no checkpoints."""
    names = (safetensors_io.INDEX, safetensors_io.SINGLE)
    return not (directory / "checkpoints").is_dir() and any(
        (directory / name).is_file() for name in names
    )


class Weights(Protocol):
    """Weights that are read leaf by leaf, from wherever they lie.

    Attributes:
      specs: name -> what the model declares.
      step: which step of the run they are from, or 0 where nothing says it.
      averaged: whether they are moving averages, where something says it.
      origin: step, kind and source of the weights, for the files of an export.
      measured: what the run measured at this step with these weights; empty where it is not known.
      versions: package -> version, of the training, where it is known.
    """

    specs: dict[str, Spec]
    step: int
    averaged: bool
    origin: dict[str, str]
    measured: Mapping[str, float]
    versions: Mapping[str, str]

    def leaves(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of the leaves asked for, in the dtypes of the model."""
        ...

    def counts(self) -> np.ndarray | tuple[()]:
        """Updates of each layer's running statistics, i32 [S], see `trainlib.model.statistics`; ()
        or 0 each where nobody says them.
        """
        ...

    def close(self) -> None:
        """Closes what is open."""
        ...


class Exported:
    """Weights in safetensors under our own names.

    Attributes: as of `Weights`.
    """

    def __init__(self, directory: Path, abstract: Abstract):
        self.specs = {**abstract.params, **abstract.model_state}
        self._reader = safetensors_io.Reader(directory)
        self.origin = self._reader.origin
        step = self.origin.get("step", "")
        self.step = int(step) if re.fullmatch(r"\d{1,15}", step) else 0
        self.averaged = self.origin.get("weights") == "ema"
        self.measured: Mapping[str, float] = {}  # the manifest of the run stayed behind
        self.versions: Mapping[str, str] = {}
        layout = interchange.own_layout(self.specs, {})
        there = {name: tensor.shape for name, tensor in self._reader.tensors.items()}
        interchange.match(layout, self.specs, there).check(directory)
        check_memory(sum(map(nbytes, self.specs.values())), str(directory))

    def leaves(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of the leaves asked for, in the dtypes of the model."""
        for name in self.specs if names is None else names:
            yield name, self._reader.read(name).astype(self.specs[name].dtype, copy=False)

    def counts(self) -> np.ndarray | tuple[()]:
        """Updates of each layer's running statistics, see `trainlib.model.statistics`: nobody says
        them here.
        """
        return _uncounted(self.specs)

    def close(self) -> None:
        """Nothing stays open."""


class Saved:
    """Weights in the checkpoints of a run.

    Attributes: as of `Weights`.

    Args:
      directory: the workdir.
      abstract: the model.
      step: which; None is the newest.
      which: "raw" weights, "ema" (their moving averages), or "auto", averages where there are any.

    Raises:
      CheckpointError: no such step, or one of another model, or no averages.
    """

    def __init__(
        self, directory: Path, abstract: Abstract, step: int | None = None, which: str = "auto"
    ):
        if which not in WEIGHTS:
            raise one_of("--weights", which, WEIGHTS)
        folder = directory / "checkpoints"
        if not folder.is_dir():
            raise CheckpointError(
                f"{directory} holds no weights: there is neither a directory checkpoints nor a "
                f"{safetensors_io.SINGLE} in it. Give the --workdir of a training."
            )
        self.specs = {**abstract.params, **abstract.model_state}
        self._checkpoints = checkpoint.Checkpoints(folder)
        self.step = self._checkpoints.pick(step)
        averaged = any(name.startswith("ema/") for name in self._checkpoints.shapes(self.step))
        if which == "ema" and not averaged:
            raise CheckpointError(
                f"Step {self.step} in {folder} holds no moving averages: the run had ema_decay=0. "
                "Use --weights=raw."
            )
        self.averaged = averaged and which != "raw"
        kinds = {
            **dict.fromkeys(abstract.params, "params"),
            **dict.fromkeys(abstract.model_state, "model_state"),
        }
        self._stored = {n: f"{'ema' if self.averaged else k}/{n}" for n, k in kinds.items()}
        manifest = self._checkpoints.manifest(self.step)
        # A run that has averages evaluates them and nothing else.
        self.measured: Mapping[str, float] = manifest.metrics if averaged == self.averaged else {}
        versions = manifest.meta.get("versions", {})
        self.versions: Mapping[str, str] = {str(n): str(v) for n, v in versions.items()}
        digests = {n: leaf.digest for n, leaf in manifest.leaves.items()}
        named = json.dumps([(n, digests.get(n)) for n in sorted(self._stored.values())])
        self.origin = {
            "step": str(self.step),
            "weights": "ema" if self.averaged else "raw",
            "source": hashlib.sha256(named.encode()).hexdigest()[:16],
        }

    def leaves(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of the leaves asked for, in host memory."""
        place = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        for group in _groups(self.specs, list(self.specs if names is None else names)):
            read: dict[str, Any] = self._checkpoints.restore_some(
                self.step,
                {
                    self._stored[n]: jax.ShapeDtypeStruct(
                        self.specs[n].shape, self.specs[n].dtype, sharding=place
                    )
                    for n in group
                },
            )
            for name in group:
                yield name, np.asarray(read.pop(self._stored[name]))

    def counts(self) -> np.ndarray | tuple[()]:
        """Updates of each layer's running statistics, i32 [S], see `trainlib.model.statistics`; 0
        each where the checkpoint does not say them.
        """
        stored = self._checkpoints.shapes(self.step).get(checkpoint.COUNTS)
        if stored is None:
            return _uncounted(self.specs)
        place = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        spec = jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=place)
        read = self._checkpoints.restore_some(self.step, {checkpoint.COUNTS: spec})
        return np.asarray(read[checkpoint.COUNTS])

    def close(self) -> None:
        """Closes the checkpoints."""
        self._checkpoints.close()


def _uncounted(specs: Iterable[str]) -> np.ndarray | tuple[()]:
    counts = statistics.uncounted(specs)
    return np.asarray(counts) if len(counts) else ()


def _groups(specs: Mapping[str, Spec], names: list[str]) -> Iterator[list[str]]:
    """Names in order, in groups of at most `BATCH` bytes."""
    group: list[str] = []
    size = 0
    for name in names:
        if group and size + nbytes(specs[name]) > BATCH:
            yield group
            group, size = [], 0
        group.append(name)
        size += nbytes(specs[name])
    if group:
        yield group


def open_weights(
    directory: Path, abstract: Abstract, step: int | None = None, which: str = "auto"
) -> Saved | Exported:
    """The weights in a workdir or in an exported directory.

    Raises:
      CheckpointError: neither is there, or they are of another model.
      ConfigError: `step` or `which` for an export, which has one set of weights.
    """
    if not is_export(directory):
        return Saved(directory, abstract, step, which)
    if step is not None or which != "auto":
        raise one_step(directory)
    return Exported(directory, abstract)


def one_step(directory: Path) -> ConfigError:
    """The error for a choice of step or weights in an export."""
    return ConfigError(
        f"{directory} is an export: it holds the weights of one step. Leave --step and "
        "--weights out, or give the --workdir of the training."
    )


def part_of(sizes: Mapping[str, int], part: int, parts: int) -> list[str]:
    """The names that process `part` of `parts` (from 0) handles: runs of about equal bytes."""
    total, begun, found = max(1, sum(sizes.values())), 0, []
    for name, size in sizes.items():
        if math.floor(begun * parts / total) == part:
            found.append(name)
        begun += size
    return found


def check_new(out: Path) -> None:
    """Refuses a directory that holds a run.

    Raises:
      ConfigError: it does.
    """
    if (out / "checkpoints").exists() or (out / "config.json").exists():
        raise ConfigError(
            f"--out={out} already holds a run. Give a directory that is new or empty."
        )


def save_as_run(
    config: ConfigDict,
    abstract: Abstract,
    weights: Mapping[str, Any],
    out: Path,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Writes weights as step 0 of a run, with its config.json: what `init_from` starts from.

    Args:
      config: of the run.
      abstract: the model.
      weights: name -> array, parameters and statistics.
      out: a workdir without checkpoints, see `check_new`.
      beside: further files: name -> text.

    Raises:
      StorageError: the disk refuses.
    """
    begun = TrainState(
        step=jnp.int32(0),
        params={name: weights[name] for name in abstract.params},
        model_state={name: weights[name] for name in abstract.model_state},
        opt_state=(),
        ema={},
        skipped=jnp.zeros(2, jnp.int32),
        counts=statistics.uncounted(abstract.model_state),
    )
    checkpoints = open_workdir(config, out, abstract)
    with contextlib.closing(checkpoints):
        checkpoints.save(0, begun, checkpoint_meta(config, {}))
        checkpoints.wait()
    for name, text in (beside or {}).items():
        write_text(out / name, text)
    save_config(config, out)
