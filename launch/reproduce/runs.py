"""The runs of a tiny variant: each a workdir of its own, finished ones are only read again.

A workdir is named by its configuration and by a digest of all of its values, so that tables share
the runs that they have in common, and none is taken for another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import resource
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch import families
from launch.reproduce.experiment import Setting
from trainlib.errors import DataError, shown
from trainlib.files import write_atomically
from trainlib.untrusted_files import read_json

METRICS = "metrics.jsonl"
COST = "cost.json"  # in each workdir: CPU seconds that it took
MARGIN = 0.1  # nats above the best evaluation at which a run no longer counts as stable
# The plan of a run on another machine decides nothing here, nor does what it is compared with.
_NO_PART = ("name", "target", "published.")


def place(setting: Setting, seed: int, folder: Path) -> Path:
    """Where the run of a setting with a seed lies."""
    from trainlib.config import flatten

    config = setting.load(seed=str(seed))
    values = {k: v for k, v in flatten(config).items() if not k.startswith(_NO_PART)}
    if setting.start is not None:
        values["start"] = place(setting.start, seed, folder).name
    text = json.dumps(values, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return folder / f"{config.name.replace(':', '_')}_seed{seed}_{digest}"


def finished(setting: Setting, seed: int, folder: Path) -> bool:
    """Whether this run is done."""
    if not folder.is_dir():  # to place a run, its configuration is loaded
        return False
    return (place(setting, seed, folder) / "summary.json").is_file()


def train(setting: Setting, seed: int, folder: Path) -> Path:
    """Trains a run, or goes on with it; first the one whose weights it starts from.

    Raises:
      DataError: it stopped before its last step.
    """
    workdir = place(setting, seed, folder)
    if finished(setting, seed, folder):
        return workdir
    more = {"seed": str(seed)}
    if setting.start is not None:
        more["init_from"] = str(train(setting.start, seed, folder))
    config = setting.load(**more)
    with _kept_cost(workdir):
        code = families.of(config).train.run(config, workdir)
    if code or not finished(setting, seed, folder):
        raise DataError(
            f"{workdir}: the run of {setting.flags} ended with code {code} before its last step. "
            "Give the same command again to go on with it."
        )
    return workdir


@contextlib.contextmanager
def _kept_cost(workdir: Path) -> Iterator[None]:
    """Adds what a run took to what it took before it was stopped."""
    before = cpu_seconds() - cost(workdir)
    try:
        yield
    finally:
        if workdir.is_dir():
            text = json.dumps({"cpu_seconds": round(cpu_seconds() - before, 1)})
            write_atomically(workdir / COST, f"{text}\n")


def cost(workdir: Path) -> float:
    """CPU seconds that a run took so far."""
    return read_cost(workdir).get("cpu_seconds", 0.0)


def read_cost(workdir: Path) -> dict[str, float]:
    """What `COST` in a workdir says; nothing where there is none.

    Raises:
      DataError: it holds something else than seconds.
    """
    path = workdir / COST
    if not os.path.lexists(path):
        return {}
    content = read_json(path, error=DataError)
    if not all(type(value) in (int, float) and value >= 0 for value in content.values()):
        raise DataError(
            f"{shown(path)} holds something else than seconds. Remove it, to go on without what "
            "the run took so far."
        )
    return content


def cpu_seconds() -> float:
    """User and system time of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished run, read from its files.

    Attributes:
      setting: what it is.
      seed: its seed.
      workdir: where it lies.
    """

    setting: Setting
    seed: int
    workdir: Path

    @functools.cached_property
    def lines(self) -> list[dict[str, Any]]:
        """All lines of its metrics, read once."""
        return self.read()

    def read(self) -> list[dict[str, Any]]:
        """The lines of its metrics.

        Raises:
          DataError: they, or the summary of the run, are damaged or not there as a whole, so that
            a figure of them would be wrong.
        """
        from trainlib.run.metric_writers import read
        from trainlib.run.summary import read_summary

        damaged: list[int] = []
        try:
            summary = read_summary(self.workdir) or {}
            found = list(read(self.workdir / METRICS, damaged.append))
        except DataError as error:
            raise DataError(f"{error} {self._advice}") from None
        end, last = summary.get("step"), max((line["step"] for line in found), default=None)
        if damaged or last != end:
            what = f"damaged lines ({damaged[0]:,})" if damaged else f"no line of step {end}"
            raise DataError(f"{shown(self.workdir / METRICS)} has {what}. {self._advice}")
        read_cost(self.workdir)
        return found

    @property
    def _advice(self) -> str:
        return f"Remove {shown(self.workdir)}, and the same command trains this run again."

    def curve(self, name: str, kind: str) -> list[tuple[int, float]]:
        """(step, value) of a figure, of kind "train" or "eval"."""
        found = [line for line in self.lines if line.get("kind") == kind]
        return [(line["step"], line[name]) for line in found if line.get(name) is not None]

    def last(self, name: str) -> float | None:
        """A figure of the last evaluation."""
        curve = self.curve(name, "eval")
        return curve[-1][1] if curve else None

    def percent(self, name: str) -> float | None:
        """The same, times 100."""
        value = self.last(name)
        return None if value is None else 100 * value

    def negative(self, name: str) -> float | None:
        """The same, times -1."""
        value = self.last(name)
        return None if value is None else -value

    def trained(self, name: str) -> float | None:
        """The mean of a figure over the last tenth of the training steps."""
        values = [value for _, value in self.curve(name, "train")]
        return statistics.mean(values[-max(1, len(values) // 10) :]) if values else None

    def of_routers(self, name: str) -> list[float]:
        """A figure of every router at every training step."""
        training = (line for line in self.lines if line.get("kind") == "train")
        return [v for line in training for key, v in line.items() if key.endswith(f"/{name}")]

    def largest(self, name: str) -> float | None:
        """The largest value of a figure of the routers."""
        return max(self.of_routers(name), default=None)

    def mean_percent(self, name: str) -> float | None:
        """The mean of a figure over the routers and the training, times 100."""
        values = self.of_routers(name)
        return 100 * statistics.mean(values) if values else None

    @property
    def stable(self) -> float:
        """1 where no step was skipped and the last evaluation is near the best one, or 0."""
        curve = [value for _, value in self.curve("cross_entropy", "eval")]
        steps = [line for line in self.lines if line.get("kind") == "train"]
        finite = bool(curve) and all(map(math.isfinite, curve))
        return float(
            finite
            and curve[-1] <= min(curve) + MARGIN
            and not any(line.get("skipped") for line in steps)
        )

    @property
    def params(self) -> float:
        """Parameters of its model."""
        config = self.setting.load()
        return float(families.of(config).describe.describe(config)["params"])


def records(settings: Sequence[Setting], seeds: int, folder: Path) -> list[Record]:
    """Those runs that are finished."""
    return [
        Record(setting, seed, place(setting, seed, folder))
        for setting in settings
        for seed in range(seeds)
        if finished(setting, seed, folder)
    ]
