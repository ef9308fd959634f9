"""Whether the state of a training fits the memory of the devices, before anything is allocated.

A process that takes more than the host has is killed by the system without a word, so it is worth
saying beforehand. Only what is certain counts: the train state and one gradient of each weight that
learns. Activations come on top; `launch.compile` has them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from trainlib import commands
from trainlib.chips import container_limits
from trainlib.errors import ConfigError
from trainlib.step.plan import Plan

GIB = 2**30


def check_memory(plan: Plan[Any]) -> None:
    """Refuses a state that cannot fit the devices of this process.

    Raises:
      ConfigError: the state and its gradients need more than there is.
    """
    state = plan.abstract_state()
    gradients = {name: state.params[name] for name in plan.trained}
    need = device_bytes(state) + device_bytes(gradients)
    devices = plan.mesh.local_devices
    room = device_memory(devices)
    if room is None or need <= room:
        return
    parts = f"{plan.abstract.param_count:,} parameters with optimiser slots and gradients"
    raise ConfigError(
        f"The train state of {plan.config.name} does not fit: {parts} take {need / GIB:,.1f} GiB a "
        f"device, and there are {room / GIB:,.1f} GiB for each ({plan.mesh.size} in all). Use a "
        "smaller model, more devices, or --config.sharding=fsdp, which divides the weights over "
        f"them. `{commands.name('compile')}` says what a step needs in all."
    )


def device_memory(devices: Sequence[Any]) -> int | None:
    """Bytes that one of these devices of this process has; CPU devices share the host's memory.

    None where the platform does not say.
    """
    if devices[0].platform == "cpu":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min([total, *(limit for limit, _ in container_limits())]) // len(devices)
    stats = devices[0].memory_stats() or {}
    return stats.get("bytes_limit")


def device_bytes(tree: Any) -> int:
    """Bytes of abstract arrays on one device, from their shapes and shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total
