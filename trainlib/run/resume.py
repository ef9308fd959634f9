"""Resuming a run: the newest step that is whole, and what may have changed since it was saved."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from trainlib import config as settings
from trainlib.checkpoint.checkpoints import Checkpoints, DamagedStep, describe_versions, first_says
from trainlib.checkpoint.write import warn
from trainlib.data.order import position_changes
from trainlib.errors import CheckpointError, ConfigError
from trainlib.step.train_state import TrainState


def checkpoint_meta(config: ConfigDict, position: dict[str, Any]) -> dict[str, Any]:
    """What a run says of itself in a manifest: configuration, data position, what decides bits."""
    values = json.loads(settings.to_json(config))
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
    """Where a run resumes.

    Attributes:
      step: number of finished steps.
      state: as it was saved, verified.
      changed: what is different since it was saved, a line each.
      eval_pending: the evaluation due at this step was skipped because the run was stopped.
    """

    step: int
    state: TrainState
    changed: list[str]
    eval_pending: bool


def eval_due(config: ConfigDict, step: int) -> bool:
    """Whether a run is evaluated after a step."""
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
    damaged: list[int] = []
    for step in first_says(checkpoints.numbers()):
        try:
            manifest = checkpoints.manifest_everywhere(step)
            if manifest is None:
                continue
            changed = check_resume(manifest.meta, config, fixed, position(step))
            check(manifest.meta, step)
            state = checkpoints.restore(step, like)
        except DamagedStep as error:
            if config.checkpoint.on_corrupt == "fail":
                raise
            warn(str(error))
            damaged.append(step)
            continue
        for number in damaged:
            checkpoints.set_aside(number)
        eval_pending = step > 0 and eval_due(config, step) and not manifest.metrics
        return Resumed(step, state, changed, eval_pending)
    if damaged:
        raise CheckpointError(
            f"No step in {checkpoints.directory} is whole: {', '.join(map(str, damaged))} "
            f"{'are' if len(damaged) > 1 else 'is'} damaged. Restore the directory from a copy, or "
            "start again in another --workdir."
        )
    return None


# Keys by which a run from before the keys were renamed is known: each family and kind has had one.
_RENAMED = ("model.head_width", "model.attention.heads")


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
    now = settings.flatten(config)
    changes = settings.differences(before, now)
    lines = {key: f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items()}
    if renamed := [key for key in _RENAMED if key in before and key not in now]:
        raise ConfigError(
            f"The run in this workdir was made by an earlier version: its {renamed[0]} has another "
            "name now, and more keys have (CHANGELOG.md lists them). Use a new --workdir."
        )
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
        changes = settings.differences(meta.get(section, values), values)
        lines += [f"{section}.{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items()]
    return lines
