"""Where the checkpoint lies that a run starts from, for both families."""

from __future__ import annotations

from pathlib import Path

from trainlib.errors import CheckpointError


def find(path: str | Path) -> tuple[Path, int | None]:
    """Where the checkpoints are, and the step if `path` names one.

    Args:
      path: a workdir, its directory `checkpoints`, or one step in it.

    Raises:
      CheckpointError: none of these is there.
    """
    place = Path(path).expanduser()
    candidates: list[tuple[Path, int | None]] = [(place / "checkpoints", None), (place, None)]
    if place.name.isdecimal():
        candidates.append((place.parent, int(place.name)))
    for directory, step in candidates:
        if directory.is_dir() and any((s / "state").is_dir() for s in directory.glob("[0-9]*")):
            return directory, step
    raise CheckpointError(
        f"init_from={path} holds no checkpoint. Give the --workdir of a run, its directory "
        "checkpoints, or one step in it (WORKDIR/checkpoints/STEP)."
    )
