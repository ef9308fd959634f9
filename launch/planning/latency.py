"""Columns of latency beside published models: `python -m launch.describe --table=papers --latency`.

Rows that are of the same model are measured once, and predictions are kept for the next call. All
rows take long, so each that is done is told on standard error, with what is left.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlib import compile_cache
from trainlib.errors import ConfigError, nearest
from trainlib.run.progress import duration

if TYPE_CHECKING:
    from vitattn.latency import Latency, Setting
    from vitattn.models import ModelConfig
    from vitattn.papers import Published

HERE = "here"  # value of --latency without one
COLUMNS = ("ms", "quartiles", "images/s", "of the base")
# What a network is compared with: itself without these, as arXiv 1904.09925 does.
_ADDED = ("attention", "gate", "stem", "head_attention")


def matches(pattern: str, *texts: str) -> bool:
    """Whether one of the texts contains a pattern, in which `*` and `?` stand for other letters."""
    asked = f"*{pattern.lower()}*"
    return any(fnmatch.fnmatchcase(text.lower(), asked) for text in texts)


def chosen(rows: Sequence[Published], pattern: str, also: Sequence[object] = ()) -> list[Published]:
    """The rows whose label or table contains a pattern; all for "".

    Args:
      rows: which there are.
      pattern: see `matches`.
      also: what else was found by the pattern, without which there has to be a row.

    Raises:
      ConfigError: there is none; names the nearest label.
    """
    found = [row for row in rows if matches(pattern, row.label, row.source)]
    if not found and not also:
        labels = list(dict.fromkeys(row.label for row in rows))
        raise ConfigError(
            f"--rows={pattern}: no row of the table has this in its name or in its source. "
            f"{nearest(pattern, labels)}Names: {'; '.join(labels)}."
        )
    return found


@dataclasses.dataclass(frozen=True)
class Timed:
    """Latency of a row, and of the network that it adds attention or gates to.

    Attributes:
      latency: of the row.
      base: None where the table has no such network, or the row is one.
    """

    latency: Latency
    base: Latency | None

    @property
    def of_base(self) -> float | None:
        """The time over that of the base."""
        return None if self.base is None else self.latency.seconds / self.base.seconds


class Clock:
    """Latency of rows, each model once.

    Args:
      where: `HERE`, or a target to predict for.
      setting: what is asked of every model.
      total: rows that will be asked for.
      folder: where predictions are kept, by all that they depend on; None for nowhere.
    """

    def __init__(self, where: str, setting: Setting, total: int, folder: Path | None = None):
        self.where, self.setting, self.total, self.folder = where, setting, total, folder
        self._started, self._asked = time.monotonic(), 0
        self._known: dict[ModelConfig, Latency] = {}

    @staticmethod
    def of_flags(args: argparse.Namespace, total: int) -> Clock:
        """As a command line asks for it.

        Raises:
          ConfigError: a batch or a type that there is not.
        """
        from trainlib.keys import choice, fit, whole
        from vitattn.latency import Setting

        fit("--batch", args.batch, whole(1))
        if args.dtype is not None:
            fit("--dtype", args.dtype, choice("float32", "bfloat16"))
        setting = Setting(args.batch, args.dtype or "", args.image_size)
        folder = None
        if args.latency != HERE and (cache := compile_cache.enable(args.compile_cache)):
            folder = cache / "predicted"
        return Clock(args.latency, setting, total, folder)

    def of(self, row: Published) -> Timed:
        """Measures the model of a row, or predicts it, and tells it."""
        from vitattn.models import configure

        key = configure(row.model)
        if key not in self._known:
            self._tell(f"{'timing' if self.where == HERE else 'compiling'} {row.label} ...")
            self._known[key] = self._latency(row.model)
        self._asked += 1
        found = self._known[key]
        self._tell(f"{row.label}: {1e3 * found.seconds:.4g} ms{self._left()}", done=True)
        base = configure({n: value for n, value in row.model.items() if n not in _ADDED})
        return Timed(found, None if base == key else self._known.get(base))

    def _latency(self, section: Mapping[str, Any]) -> Latency:
        from vitattn import latency

        if self.where == HERE:
            return latency.measure(section, self.setting)

        def predicted() -> dict[str, Any]:
            return dataclasses.asdict(latency.predict(section, self.setting, self.where))

        if self.folder is None:
            return latency.predict(section, self.setting, self.where)
        from launch.hosts.start import source_digest, versions
        from trainlib.planning.search import Cache

        key = [section, dataclasses.asdict(self.setting), self.where, source_digest(), versions()]
        facts = Cache(self.folder).get(key, predicted)
        return latency.Latency(**{**facts, "image_size": tuple(facts["image_size"])})

    def _left(self) -> str:
        if self._asked >= self.total:
            return ""
        spent = time.monotonic() - self._started
        left = duration(spent / self._asked * (self.total - self._asked))
        return f" ({self._asked} of {self.total}, about {left} left)"

    def _tell(self, text: str, done: bool = False) -> None:
        """On a terminal one line, which the next takes the place of; in a log, those of results."""
        if sys.stderr.isatty():
            end = "\n" if done else ""
            print(f"\r\x1b[K{text}", end=end, file=sys.stderr, flush=True)
        elif done:
            print(text, file=sys.stderr, flush=True)


def cells(found: Timed) -> list[str]:
    """What `COLUMNS` hold for a row: milliseconds a batch and their quartiles, images a second, and
    the time over that of the network without attention.
    """
    one = found.latency
    spread = f"{1e3 * one.low:.4g} - {1e3 * one.high:.4g}" if one.runs else "predicted"
    base = "-" if found.of_base is None else f"{found.of_base:.2f} x"
    return [f"{1e3 * one.seconds:.4g}", spread, f"{one.images_per_second:.4g}", base]


def facts(found: Timed) -> dict[str, Any]:
    """The same as plain data, in seconds."""
    one = found.latency
    more = {"images_per_second": one.images_per_second, "of_base": found.of_base}
    return {**dataclasses.asdict(one), **more}


def heading(timed: Sequence[Timed]) -> str:
    """What the figures are of: device, batch, type and sizes of all rows, runs."""
    latencies = [one.latency for one in timed]
    first = latencies[0]
    sizes = sorted({one.image_size for one in latencies})
    pixels = " or ".join(f"{height} x {width}" for height, width in sizes)
    images = "one image" if first.batch == 1 else f"{first.batch} images"
    what = f"Inference of {images} of {pixels} pixels, {first.dtype}"
    if not first.runs:
        from trainlib.planning.ledger.ledger import compiler_version

        return f"{what}, predicted for {first.device} by libtpu {compiler_version()}, not run."
    runs = f"{min(one.runs for one in latencies)} or more runs after a first"
    return f"{what}, measured on {first.device}: median of {runs}."
