"""The devices of a target that is not here, as XLA's compiler describes them."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from trainlib import commands
from trainlib.chips import Target
from trainlib.errors import ConfigError

# Two processes may compile at once, and no cloud is asked what machine this is.
ENVIRONMENT = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}


def devices(target: Target) -> list[Any]:
    """The devices of a target, as XLA's compiler describes them.

    Raises:
      ConfigError: libtpu (or CUDA) is not installed, or the compiler knows no such slice.
    """
    from jax.experimental import topologies

    os.environ.update(ENVIRONMENT | os.environ)
    if target.platform == "tpu":
        _require_libtpu(target)
    options: dict[str, Any] = {}
    topology = f"{target.chip.name}:{target.topology}"
    if target.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # without it, each core is a device
    if target.topology in ("1x1", "1x1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if target.slices > 1:
        options["num_slices"] = target.slices
    if target.platform == "cuda":
        topology = f"1x1x{target.devices}"
    try:
        with captured_errors():
            described = topologies.get_topology_desc(
                platform=target.platform, topology_name=topology, **options
            ).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        raise _refused(target, topology, error) from error
    if len(described) != target.devices:
        raise ConfigError(
            f"--target={target.name} has {target.devices} devices by name, and this version of the "
            f"compiler gives it {len(described)}. Use a version that is in constraints.txt."
        )
    return list(described)


def _require_libtpu(target: Target) -> None:
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--target={target.name} needs the TPU compiler, and libtpu is not installed. It comes "
            f"with the extra aot: {commands.install('aot')} (no TPU is needed)."
        )


def _refused(target: Target, topology: str, error: Exception) -> ConfigError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if target.platform == "cuda":
        return ConfigError(
            f"--target={target.name}: this XLA compiles for GPUs only where they are ({said}). Run "
            "the training command there with --config.steps=1, or plan for a TPU target."
        )
    return ConfigError(
        f"--target={target.name}: the TPU compiler knows no slice {topology} ({said}). Take one of "
        "the usual names."
    )


@contextlib.contextmanager
def captured_errors() -> Iterator[list[str]]:
    """Takes what is written to standard error, also by C++, while a block runs.

    Yields:
      A list that holds the text once the block has ended.
    """
    log = [""]
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            log[0] = file.read().decode(errors="replace")
