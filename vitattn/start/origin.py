"""Where a run starts from: a step of another run, or an export in our own names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from trainlib import commands, paths
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.checkpoint.find import find
from trainlib.errors import CheckpointError, ConfigError, shown
from trainlib.formats.safetensors import Reader
from trainlib.formats.weight_source import is_export
from trainlib.untrusted_files import read_json

CONFIG = "config.json"


class Origin(Protocol):
    """Weights of another run.

    Attributes:
      home: the directory in which names of classes lie.
      place: where the manifest lies, for messages; "" where there is none.
      step: which step the weights are of.
      meta: of the manifest: what the run says of itself.
      shapes: name (`params/...`, `model_state/...`, `ema/...`) -> shape and dtype.
    """

    home: Path
    place: str
    step: int
    meta: Mapping[str, Any]
    shapes: Mapping[str, jax.ShapeDtypeStruct]

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Name -> array with the dtype and sharding that is wanted."""
        ...

    def close(self) -> None:
        """Closes what is open."""
        ...


class Step:
    """A step of a run; see `Origin`."""

    def __init__(self, directory: Path, step: int | None):
        self._checkpoints = Checkpoints(directory)
        self.step = self._checkpoints.pick(step)
        self.home, self.place = directory.parent, str(directory / str(self.step))
        self.meta: Mapping[str, Any] = self._checkpoints.meta(self.step)
        self.shapes: Mapping[str, jax.ShapeDtypeStruct] = self._checkpoints.shapes(self.step)

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """See `Origin`.

        Raises:
          CheckpointError: the step is damaged.
        """
        return self._checkpoints.restore_some(self.step, wanted)

    def close(self) -> None:
        """See `Origin`."""
        self._checkpoints.close()


class Export:
    """An export in our own names; see `Origin`. Nobody says there what is a weight and what a
    statistic, so that all have names of weights."""

    def __init__(self, directory: Path):
        self._reader = Reader(directory)
        self.home, self.place = directory, ""
        step = self._reader.origin.get("step", "")
        self.step = int(step) if re.fullmatch(r"\d{1,15}", step) else 0
        self.meta: Mapping[str, Any] = {"config": read_json(directory / CONFIG)}
        self.shapes: Mapping[str, jax.ShapeDtypeStruct] = {
            f"params/{name}": jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
            for name, tensor in self._reader.tensors.items()
        }

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """See `Origin`."""
        return {name: self._array(name.partition("/")[2], like) for name, like in wanted.items()}

    def _array(self, name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
        value = self._reader.read(name).astype(like.dtype)
        if not np.isfinite(value).all():
            raise CheckpointError(
                f"init_from: {shown(name)} in {shown(self.home)} holds values that are NaN or "
                "infinite. Such weights answer nothing."
            )
        return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])

    def close(self) -> None:
        """Nothing stays open."""


def open_origin(path: str | Path, step: int | None) -> Origin:
    """Opens what `init_from` names.

    Args:
      path: a workdir, its directory `checkpoints`, one step in it, or an export in our own names.
      step: `init_from_step`; None is the one that `path` names, or the newest.

    Raises:
      CheckpointError: there is none, or not that step, or weights in the names of others.
      ConfigError: a step of an export.
    """
    given = paths.resolve(path, "init_from")
    single = given.is_file() and given.suffix == ".safetensors"
    if not single and not is_export(given):
        directory, named = find(path)
        return Step(directory, step or named)
    if single or not (given / CONFIG).is_file():
        raise CheckpointError(
            f"init_from={shown(path)} holds weights in the names of another program. Import them "
            f"first (`{commands.name('import')} --format=FORMAT --path={shown(path)} "
            "--out=WORKDIR`) and start from that WORKDIR."
        )
    if step is not None:
        raise ConfigError(
            f"init_from={shown(path)} is an export: it holds the weights of one step. Leave "
            "--config.init_from_step out."
        )
    return Export(given)
