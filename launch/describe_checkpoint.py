"""Describes the checkpoints of a run: `python -m launch.describe --checkpoint=DIR [--config=FILE]`.

DIR is a workdir, its `checkpoints`, or one step. Every leaf of the newest step, or of the one that
was named, is read and compared with the digest it was saved with, a few at a time; with `--config`,
what differs from that configuration. Nothing is written. Exit code 66 when
something is damaged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from trainlib.checkpoint.checkpoints import Checkpoints
    from trainlib.checkpoint.manifest import Leaf, Manifest

BATCH, MOST = 64 << 20, 500  # bytes and number of small leaves that are read together
DAMAGED = "damaged"
SHOWN = 10  # damaged leaves that are printed


def describe(where: Path, config: ConfigDict | None, as_json: bool) -> int:
    """Prints what a checkpoint holds, whether it is whole, and how its configuration differs.

    Args:
      where: workdir, `checkpoints` or step.
      config: to compare with; None: no comparison.
      as_json: print one JSON object, with every leaf.

    Returns:
      0, or 66 when a leaf of this step, or another step by its manifest, is damaged.

    Raises:
      CheckpointError: there is no step, or its manifest is missing or damaged.
      StorageError: the disk refuses.
    """
    from trainlib.checkpoint.checkpoints import Checkpoints
    from trainlib.checkpoint.find import find
    from trainlib.config import differences, flatten
    from trainlib.errors import CheckpointError

    directory, named = find(where, "--checkpoint")
    checkpoints = Checkpoints(directory)
    step = checkpoints.pick(named)
    manifest = checkpoints.manifest(step)
    damaged = verify(checkpoints, manifest)
    saved = manifest.meta.get("config", {})
    changes = {} if config is None else differences(saved, flatten(config))
    others = {number: state(checkpoints, number) for number in checkpoints.numbers()}
    if as_json:
        print(json.dumps(facts(manifest, damaged, changes, others)))
    else:
        show(manifest, damaged, changes if config is not None else None, others, str(directory))
    broken = damaged or any(what.startswith(DAMAGED) for what in others.values())
    return CheckpointError.exit_code if broken else 0


def nbytes(leaf: Leaf) -> int:
    """Bytes of a leaf in memory."""
    import jax.numpy as jnp

    return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize


def _batches(leaves: Mapping[str, Leaf]) -> Iterator[list[str]]:
    batch, size = [], 0
    for name, leaf in leaves.items():
        if batch and (size + nbytes(leaf) > BATCH or len(batch) == MOST):
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += nbytes(leaf)
    if batch:
        yield batch


def verify(checkpoints: Checkpoints, manifest: Manifest) -> dict[str, str]:
    """Leaf -> what is wrong with it, of the leaves that cannot be read or are not what was saved.

    Holds no more than `BATCH` bytes, or one leaf where that is larger.

    Raises:
      CheckpointError: a leaf larger than the memory of this machine.
    """
    import jax
    from jax.sharding import SingleDeviceSharding

    from trainlib.untrusted_files import check_memory

    on_host = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    wanted = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_host)
        for name, x in checkpoints.shapes(manifest.step).items()
    }
    for name, leaf in manifest.leaves.items():
        check_memory(nbytes(leaf), f"Leaf {name} of step {manifest.step}")
    damaged: dict[str, str] = {}
    for names in _batches(manifest.leaves):
        damaged |= checkpoints.damaged_leaves(manifest, {name: wanted[name] for name in names})
    return damaged


def state(checkpoints: Checkpoints, number: int) -> str:
    """What is known of a step without reading its arrays."""
    from trainlib.checkpoint.checkpoints import DamagedStep, UnfinishedStep
    from trainlib.errors import CheckpointError

    try:
        manifest = checkpoints.manifest(number)
    except DamagedStep as error:
        return f"{DAMAGED}: {error}"
    except UnfinishedStep:
        return "not finished, or not ours"
    except CheckpointError as error:
        return f"not read: {error}"
    metrics = ", ".join(f"{name} {value:.6g}" for name, value in manifest.metrics.items())
    return "whole by its manifest" + (f"; {metrics}" if metrics else "")


def facts(
    manifest: Manifest,
    damaged: Mapping[str, str],
    changes: Mapping[str, tuple[Any, Any]],
    others: Mapping[int, str],
) -> dict[str, Any]:
    """The description as plain data; sizes in bytes."""
    leaves = {
        name: {
            "shape": leaf.shape,
            "dtype": leaf.dtype,
            "axes": leaf.axes,
            "partition": leaf.partition,
            "bytes": nbytes(leaf),
            "digest": leaf.digest,
            "verified": name not in damaged,
        }
        for name, leaf in manifest.leaves.items()
    }
    return {
        "step": manifest.step,
        "bytes": sum(map(nbytes, manifest.leaves.values())),
        "bytes_on_disk": sum(manifest.files.values()),
        "mesh": dict(manifest.mesh),
        "metrics": dict(manifest.metrics),
        "meta": dict(manifest.meta),
        "damaged": dict(damaged),
        "config_changes": {key: list(pair) for key, pair in changes.items()},
        "steps": dict(others),
        "leaves": leaves,
    }


def show(
    manifest: Manifest,
    damaged: Mapping[str, str],
    changes: Mapping[str, tuple[Any, Any]] | None,
    others: Mapping[int, str],
    directory: str,
) -> None:
    """Prints the description as a table."""
    from trainlib.errors import shown
    from trainlib.run.progress import summary

    parts: dict[str, list[Leaf]] = {}
    for name, leaf in manifest.leaves.items():
        parts.setdefault(name.split("/")[0], []).append(leaf)
    rows = [("name", str(manifest.meta.get("config", {}).get("name", "")))]
    for part, leaves in parts.items():
        count, size = sum(math.prod(leaf.shape) for leaf in leaves), sum(map(nbytes, leaves))
        types = ", ".join(sorted({leaf.dtype for leaf in leaves}))
        rows.append(
            (part, f"{len(leaves)} leaves, {count:,} values, {size / 1e6:,.2f} MB, {types}")
        )
    rows.append(
        ("on disk", f"{sum(manifest.files.values()) / 1e6:,.2f} MB, {len(manifest.files)} files")
    )
    mesh = ", ".join(f"{axis} {size}" for axis, size in manifest.mesh.items())
    rows.append(("saved on", f"mesh {mesh or 'unknown'}"))
    rows += [(name, f"{value:.6g}") for name, value in manifest.metrics.items()]
    for section in ("data", "versions", "random"):
        values = manifest.meta.get(section, {})
        rows.append((section, ", ".join(f"{key} {value}" for key, value in values.items())))
    good = len(manifest.leaves) - len(damaged)
    rows.append(("digests", f"{good} of {len(manifest.leaves)} leaves verified"))
    print(summary(f"Step {manifest.step} in {directory}", rows))
    for why in list(damaged.values())[:SHOWN]:
        print(f"\ndamaged: {shown(why, 1000)}")
    if len(damaged) > SHOWN:
        print(f"\nand {len(damaged) - SHOWN} more; --json lists all")
    if changes is not None:
        print("\nconfiguration: " + ("the same" if not changes else "saved -> given"))
        for key, (old, new) in changes.items():
            print(f"  {shown(key)}: {shown(repr(old))} -> {shown(repr(new))}")
    print("\nsteps")
    for number, what in others.items():
        print(f"  {number}: {shown(what, 1000)}")
