"""Reads a run or an export: its configuration, and its weights onto the devices of a mesh."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from trainlib import commands, extension, paths
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.config import Schema, assign, flatten, from_schema, read_json
from trainlib.errors import ConfigError, nearest, shown
from trainlib.formats.weight_source import is_export, open_weights
from trainlib.model.weights import Abstract, Arrays
from trainlib.step.train_state import TrainState


class Loaded(NamedTuple):
    """Weights of one step.

    Attributes:
      step: which.
      params: name -> weight.
      model_state: name -> running statistic.
      identity: text that tells these weights from others.
    """

    step: int
    params: Arrays
    model_state: Arrays
    identity: str

    @property
    def weights(self) -> Arrays:
        """Weights and statistics by their names."""
        return {**self.params, **self.model_state}


def saved_config(
    directory: Path, family: str, schema: Callable[[Mapping[str, Any]], Schema]
) -> ConfigDict:
    """The configuration that a run or an export saved as config.json, for `moe.load` and
    `vitattn.load`.

    Args:
      directory: a workdir or an export.
      family: "vitattn" or "moe", which the run has to be of.
      schema: dotted values -> the keys that exist for them.

    Raises:
      ConfigError: there is none, it is of another program or family, holds a bad value,
        or names code that nobody trusts.
    """
    path = directory / "config.json"
    if directory.is_file():
        raise ConfigError(f"{shown(directory)} is a file: give the directory of the run.")
    if not directory.is_dir():
        beside = [entry.name for entry in directory.parent.glob("*") if entry.is_dir()]
        raise ConfigError(
            f"There is no directory {shown(directory)}. {nearest(directory.name, beside)}{_give()}"
        )
    if not path.is_file():
        raise ConfigError(
            f"{shown(directory)} holds no run: there is no config.json in it. {_give()}"
        )
    values = read_json(path, follow=False)
    if "family" not in values:
        raise ConfigError(
            f"{shown(directory)} holds no run: its config.json has no key 'family', so that it is "
            f"of another program. Import it first (`{commands.name('import')}`), or export it "
            f"again in our own names (`{commands.name('export')} --names=own`)."
        )
    if values["family"] != family:
        raise ConfigError(
            f"{shown(directory)} is a run of family={shown(repr(values['family']), 40)}, and "
            f"{family}.load reads runs of family {family!r}."
        )
    values.pop("writers.extra", None)  # code that only training runs, and that is not asked of here
    extension.check(values, str(path))
    config = from_schema(schema(values))
    assign(config, values, str(path))
    paths.check(flatten(config))
    return config


def _give() -> str:
    return (
        "Give the workdir of a training, an export in our own names "
        f"(`{commands.name('export')} --names=own`), or an import."
    )


def load_weights(
    directory: Path, at_step: int | None, abstract: Abstract, shardings: TrainState
) -> Loaded:
    """The weights and statistics of a run, or of a directory that `launch.export` wrote; their
    moving averages where `shardings` have any.

    Args:
      directory: a workdir or an export.
      at_step: which step; None is the newest.
      abstract: the model.
      shardings: of its train state.

    Raises:
      CheckpointError: there is no checkpoint, or not that one, or it holds another model.
      ConfigError: a step of an export.
    """
    if is_export(directory):
        return _exported(directory, at_step, abstract, shardings)
    with contextlib.closing(Checkpoints(directory / "checkpoints")) as checkpoints:
        step = checkpoints.pick(at_step)
        params, model_state = read_weights(checkpoints, step, abstract, shardings)
        digests = [(name, leaf.digest) for name, leaf in checkpoints.manifest(step).leaves.items()]
        return Loaded(step, params, model_state, repr(digests))


def _exported(
    directory: Path, at_step: int | None, abstract: Abstract, shardings: TrainState
) -> Loaded:
    source = open_weights(directory, abstract, at_step)
    where = {**shardings.params, **shardings.model_state}
    arrays = {name: jax.device_put(value, where[name]) for name, value in source.leaves()}
    params = {name: arrays[name] for name in abstract.params}
    model_state = {name: arrays[name] for name in abstract.model_state}
    return Loaded(source.step, params, model_state, f"{directory.resolve()} {source.origin}")


def read_weights(
    checkpoints: Checkpoints, step: int, abstract: Abstract, shardings: TrainState
) -> tuple[Arrays, Arrays]:
    """Weights and statistics of a step, and nothing else of it; their moving averages where
    `shardings` have any.

    Raises:
      CheckpointError: the step holds another model; names what differs.
    """
    where = {**shardings.params, **shardings.model_state}
    kinds = {
        **dict.fromkeys(abstract.params, "params"),
        **dict.fromkeys(abstract.model_state, "model_state"),
    }
    stored = {name: f"{'ema' if shardings.ema else kind}/{name}" for name, kind in kinds.items()}
    specs = {**abstract.params, **abstract.model_state}
    wanted = {
        stored[name]: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=where[name])
        for name, spec in specs.items()
    }
    read = checkpoints.restore_some(step, wanted)
    params = {name: read[stored[name]] for name in abstract.params}
    return params, {name: read[stored[name]] for name in abstract.model_state}
