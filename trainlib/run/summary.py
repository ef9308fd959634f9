"""The summary of a finished run: printed, and kept as JSON beside its checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlib.checkpoint.write import warn
from trainlib.errors import DataError, shown
from trainlib.run.progress import summary
from trainlib.run.workdir import SUMMARY, write_text
from trainlib.seal import seal_of
from trainlib.untrusted_files import read_json


def save_summary(workdir: Path, title: str, rows: Mapping[str, str], result: dict) -> None:
    """Prints the summary of a finished run and keeps it as JSON, with the figures in `result` and
    a digest, by which it is recognised.
    """
    # An array's float is a number there, and what JSON has no number for is a name, such as "NaN".
    whole = json.dumps({**result, "rows": dict(rows)}, default=float)
    content = json.loads(whole, parse_constant=str)
    text = json.dumps({**content, "sha256": seal_of(content)}, indent=2, allow_nan=False)
    write_text(workdir / SUMMARY, text + "\n")
    print(summary(title, list(rows.items())), flush=True)


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """What `save_summary` wrote; None where it wrote nothing.

    Raises:
      DataError: there is something else, or what it wrote was changed.
    """
    path = workdir / SUMMARY
    if not os.path.lexists(path):
        return None
    content = read_json(path, error=DataError)
    if seal_of({k: v for k, v in content.items() if k != "sha256"}) != content.get("sha256"):
        raise DataError(f"{shown(path)} is not what the run wrote: its SHA-256 is another.")
    return content


def report_complete(workdir: Path, done: int, steps: int) -> None:
    """Says that there is nothing left to do, and repeats the summary."""
    saved = None
    try:
        saved = read_summary(workdir)
    except DataError as error:
        warn(f"{error} It is left as it is, and not shown.")
    # A run that was killed after its last save has none, or that of fewer steps.
    whole = saved is not None and saved.get("step") == done
    rows = saved["rows"] if saved and whole else {"checkpoints": str(workdir / "checkpoints")}
    print(summary(f"Complete: {done} steps are done, {steps} were asked for.", list(rows.items())))
    print("\nTo go on, ask for more: --config.steps=N.")
