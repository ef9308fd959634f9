"""The doctor's checks of what would be trained: the plan of a configuration and its data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from launch import families
from launch.doctor.report import OK, Finding
from trainlib.errors import DataError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def planned(config: ConfigDict, plans: list[Any]) -> Finding:
    """Batch, mesh and weights on the devices that are here; the plan is added to `plans`."""
    plan = families.of(config).plan.make(config)
    plans.append(plan)
    text = f"{config.name}: {plan.abstract.param_count:,} parameters, mesh {dict(plan.mesh.shape)}"
    return Finding("configuration", OK, f"{text}, batch {config.batch_size}")


def checkpoint_bytes(plan: Any) -> int:
    """Bytes of all checkpoints that a run keeps, while it writes one more."""
    from trainlib.step.train_state import whole_bytes

    section = plan.config.checkpoint
    return (section.keep + 1 + bool(section.best)) * whole_bytes(plan.abstract_state())


def data(config: ConfigDict) -> Finding:
    """The training split can be opened."""
    start = time.monotonic()
    source = families.of(config).open_split(config, "train")
    seconds = time.monotonic() - start
    text = f"{config.data.source}: {len(source):,} training records, opened in {seconds:.1f} s"
    return Finding("data", OK, text, DataError.exit_code)
