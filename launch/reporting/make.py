"""Makes the page of runs: `launch.report --html=FILE`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.reporting import gather, page, samples
from trainlib.errors import shown
from trainlib.pages.document import check_page, write_page
from trainlib.report.samples import Samples

FLAG = "--html"
Say = Callable[[str], object]


def check(path: Path) -> None:
    """Refuses to write over what is no page of a report.

    Raises:
      ConfigError: something else lies at `path`.
    """
    check_page(path, page.MARK, FLAG)


def make(
    workdirs: Sequence[Path],
    path: Path,
    report: gather.Report,
    count: int,
    say: Say = print,
    compile_cache: str = "",
) -> str:
    """Writes the page.

    Args:
      workdirs: of the runs; the first is the one whose configuration, checkpoints and samples are
        shown.
      path: of the page.
      report: what `launch.report` says of a run.
      count: of samples; 0 shows none.
      say: told what takes time.
      compile_cache: of `--compile_cache`, for the model that gives samples.

    Returns:
      A line on what was written.

    Raises:
      ConfigError: something else than such a page lies at `path`, or the first run cannot be read.
      StorageError: the disk refuses.
    """
    check(path)
    runs, refused = gather.gather(workdirs, report)
    if not runs or runs[0].workdir != workdirs[0]:
        report(workdirs[0], lambda _: None)  # raises what is wrong with it
    checkpoints = gather.checkpoints(runs[0])
    text = page.to_html(
        runs,
        *gather.settings(runs[0]),
        checkpoints,
        _samples(runs[0].workdir, checkpoints, count, say, compile_cache),
        refused,
        time.time(),
    )
    write_page(path, text)
    left_out = f"; {len(refused)} could not be read" if refused else ""
    several = f"{len(runs)} runs" if len(runs) > 1 else "the run"
    return f"The page of {several}: {shown(path)}, {len(text.encode()) / 1e6:.2f} MB{left_out}"


def _samples(
    workdir: Path, checkpoints: Sequence[gather.Checkpoint], count: int, say: Say, cache: str
) -> Samples | str:
    """The samples of the newest checkpoint, or why there are none; "" where none were asked for."""
    if not count:
        return ""
    newest = next((one for one in checkpoints if not one.damage), None)
    if newest is None:
        return "There is no whole checkpoint, so that nothing can answer."
    return samples.of_checkpoint(workdir, newest.step, count, say, cache)
