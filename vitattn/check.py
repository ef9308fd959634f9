"""Looks through a data set before anything is trained: `prepare --check`."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from trainlib import commands
from trainlib.errors import DataError, plain
from vitattn.task import task_of


def run(config: ConfigDict, boxes: Path | None = None) -> int:
    """Prints what a configuration would read, and all that is wrong with it.

    Args:
      config: all of it.
      boxes: a directory into which a few images of each split are drawn with their boxes.

    Raises:
      DataError: training would refuse it; all reasons are listed.
    """
    lines, refused = task_of(config).check_data(config, boxes)
    for line in lines:
        print(plain(line))
    if refused:
        count = "one reason" if len(refused) == 1 else f"{len(refused)} reasons"
        raise DataError(f"The data cannot be used, for {count}:", "\n".join(refused))
    print(f"The data can be used. Start `{commands.name('train')}`.")
    return 0
