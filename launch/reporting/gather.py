"""What the page shows of one run, from the files of its workdir alone."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.comparing import runs as comparing
from launch.reporting.metrics import Metrics
from trainlib import extension
from trainlib.errors import UserError

MOST_CHECKPOINTS = 200
Report = Callable[[Path, comparing.Each], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of a configuration.

    Attributes:
      key: dotted.
      value: of the run.
      origin: where it was set, "default", or "" where nobody noted it.
      meaning: of the key; "" where it is not known.
      default: its default; None where it is not known.
      is_default: whether the value is the default.
    """

    key: str
    value: Any
    origin: str
    meaning: str
    default: Any
    is_default: bool


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One saved step.

    Attributes:
      step: its number.
      damage: why it does not count; "" where its manifest and the sizes of its files are right.
      saved: seconds since 1970, of its manifest.
      size: bytes of its files.
      sha256: of `manifest.json`, which holds the digest of every array.
      metrics: of the evaluation at this step.
      leaves: (name, shape, dtype, digest) of its arrays.
      platform: on what it was computed, of the manifest.
      versions: of libraries.
    """

    step: int
    damage: str = ""
    saved: float = 0.0
    size: int = 0
    sha256: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    leaves: tuple[tuple[str, str, str, str], ...] = ()
    platform: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
      workdir: where it lives.
      label: its name among the runs of the page.
      facts: of `launch.comparing.runs.read`.
      metrics: its records in columns.
    """

    workdir: Path
    label: str
    facts: Mapping[str, Any]
    metrics: Metrics

    @property
    def config(self) -> Mapping[str, Any]:
        """Dotted key -> value."""
        return self.facts["config"]

    @property
    def batch_size(self) -> int:
        """Examples of a step; 1 where the configuration does not say it."""
        size = self.config.get("batch_size")
        return size if type(size) is int and 0 < size < 2**40 else 1


def gather(workdirs: Sequence[Path], report: Report) -> tuple[list[Run], list[tuple[str, str]]]:
    """Reads runs.

    Returns:
      The runs that can be read, and (label, reason) of the others.
    """
    found, refused = [], []
    labels = comparing.labels([{"workdir": str(workdir)} for workdir in workdirs])
    for workdir, label in zip(workdirs, labels, strict=True):
        metrics = Metrics()
        facts = comparing.read(workdir, report, metrics.add)
        if "error" in facts:
            refused.append((label, facts["error"]))
        else:
            found.append(Run(workdir, label, facts, metrics))
    return found, refused


def settings(run: Run) -> tuple[list[Setting], str]:
    """The configuration of a run, key by key, in the order of the file; and why it is not known
    what the keys mean, "" where it is.
    """
    from trainlib.config import read_json

    origins: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        origins = read_json(run.workdir / "config_origin.json", follow=False)
    schema, unknown = _schema(run)
    found = []
    for key, value in run.config.items():
        default, meaning = schema.get(key, (None, ""))
        same = key in schema and _plain(default) == _plain(value)
        origin = origins.get(key, "")
        found.append(
            Setting(key, value, origin if isinstance(origin, str) else "", meaning, default, same)
        )
    return found, unknown


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _schema(run: Run) -> tuple[Mapping[str, tuple[Any, str]], str]:
    """Key -> (default, meaning), and "". Or nothing, and the reason: the configuration may be of
    another version, or name code that nobody here trusts.
    """
    from launch import families

    # Code that only training runs, and that is not asked of here.
    values = {key: value for key, value in run.config.items() if key != "writers.extra"}
    try:
        extension.check(values, str(run.workdir))
        return families.by_name(values.get("family", "")).config.schema(values), ""
    except UserError as error:
        return {}, str(error)
    except Exception as error:  # of the user's own code, which may raise anything
        return {}, f"{type(error).__name__}: {error}"


def checkpoints(run: Run) -> list[Checkpoint]:
    """The checkpoints of a run, the newest first."""
    folder = run.workdir / "checkpoints"
    steps = sorted(run.facts["checkpoints"], reverse=True)[:MOST_CHECKPOINTS]
    return [_checkpoint(folder / str(step), step) for step in steps]


def _checkpoint(path: Path, step: int) -> Checkpoint:
    from trainlib.checkpoint import manifest
    from trainlib.untrusted_files import read_small

    try:
        found = manifest.read(path)
        content = read_small(path / manifest.NAME, manifest.MAX_BYTES)
        saved = (path / manifest.NAME).stat().st_mtime
    except (*manifest.NOT_READ, OSError, UserError) as error:
        return Checkpoint(step, damage=str(error) or type(error).__name__)
    leaves = tuple(
        (name, " x ".join(map(str, leaf.shape)) or "1", leaf.dtype, leaf.digest)
        for name, leaf in found.leaves.items()
    )
    metrics = {name: value for name, value in found.metrics.items() if math.isfinite(value)}
    return Checkpoint(
        step,
        saved=saved,
        size=len(content) + sum(found.files.values()),
        sha256=hashlib.sha256(content).hexdigest(),
        metrics=metrics,
        leaves=leaves,
        platform=found.meta.get("platform", {}),
        versions=found.meta.get("versions", {}),
    )
