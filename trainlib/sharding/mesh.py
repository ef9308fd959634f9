"""The device mesh: three named axes, in this order.

`replica` holds whole copies of the model (several slices), `data` splits the batch, the experts and
FSDP weights, `model` splits heads and feed-forward width. Vision uses `replica` and `data` only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from trainlib.errors import ConfigError

AXES = ("replica", "data", "model")
AnyMesh = Mesh | AbstractMesh  # of devices, or of axes and a kind of device alone


def make_mesh(
    replica: int = 1, data: int = -1, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Builds the mesh (replica, data, model); one size may be -1 and then takes the devices that
    are left.

    Axis types are passed explicitly: the default differs between JAX versions.

    Raises:
      ConfigError: when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"replica": replica, "data": data, "model": model}
    wild = [name for name, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(wild) > 1 or known < 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(
            f"mesh={sizes} is not a mesh: every size is a positive number, and at most one is -1 "
            "(the devices that are left)."
        )
    if wild and len(devices) % known:
        fits = math.gcd(known, len(devices))
        others = " x ".join(f"mesh.{name}={size}" for name, size in sizes.items() if size > 1)
        raise ConfigError(
            f"mesh.{wild[0]}=-1 takes the devices that are left, and {len(devices)} do not divide "
            f"over {others}. The largest part of these {known} that divides them is {fits}."
        )
    if wild:
        sizes[wild[0]] = len(devices) // known
    total = int(np.prod(list(sizes.values())))
    if total != len(devices):
        raise ConfigError(
            f"mesh={sizes} needs {total} devices, and {len(devices)} are there. Set mesh.replica, "
            f"mesh.data and mesh.model so that their product is {len(devices)}, or leave "
            "mesh.data=-1 to take what is left."
        )
    grid = _grid(tuple(sizes[name] for name in AXES), devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise ConfigError(
            f"mesh.replica={shape[0]} does not divide over {slices} slices: only whole copies of "
            f"the model may lie on different slices. Use mesh.replica={slices} or a multiple."
        )
    inside = (shape[0] // slices, *shape[1:])
    across = (slices, *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(
        inside, across, devices, allow_split_physical_axes=True
    )
