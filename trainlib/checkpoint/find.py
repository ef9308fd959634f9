"""Where the checkpoint lies that a run starts from, for both families."""

from __future__ import annotations

from pathlib import Path

from trainlib import paths
from trainlib.checkpoint import manifest
from trainlib.errors import CheckpointError


def find(path: str | Path, flag: str = "init_from") -> tuple[Path, int | None]:
    """Where the checkpoints are, and the step if `path` names one.

    Args:
      path: a workdir, its directory `checkpoints`, or one step in it.
      flag: what the path was given as, for the message.

    Raises:
      CheckpointError: none of these is there.
      ConfigError: it is no path of this machine.
    """
    given = paths.resolve(path, flag)
    candidates: list[tuple[Path, int | None]] = [(given / "checkpoints", None), (given, None)]
    if given.name.isdecimal():
        candidates.append((given.parent, int(given.name)))
    for directory, number in candidates:
        if any((step / manifest.NAME).is_file() for step in directory.glob("[0-9]*")):
            return directory, number
    raise CheckpointError(
        f"{flag}={path} holds no checkpoint. Give the --workdir of a run, its directory "
        "checkpoints, or one step in it (WORKDIR/checkpoints/STEP)."
    )
