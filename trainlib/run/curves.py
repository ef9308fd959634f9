"""`curves.png` from `metrics.jsonl`: loss, learning rate and evaluation metrics over steps."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

from trainlib import commands
from trainlib.errors import shown
from trainlib.files import save_picture
from trainlib.run.metric_writers import read

Series = dict[str, list[tuple[int, float]]]  # kind -> [(step, value)]


def series(path: str | Path) -> dict[str, Series]:
    """Returns name -> kind -> [(step, value)] of every number in a metrics file."""
    found: dict[str, Series] = defaultdict(lambda: defaultdict(list))
    for record in read(path):
        step, kind = record.pop("step"), record.pop("kind", "train")
        for name, value in record.items():
            if isinstance(value, int | float):
                found[name][kind].append((step, value))
    return {name: dict(kinds) for name, kinds in found.items()}


# Figures that are read together, and so share a panel: its title -> their names.
TOGETHER = {
    "average precision": ("ap", "ap50", "ap75"),
    "average precision by size": ("ap_small", "ap_medium", "ap_large"),
    "average recall with 1, 10, 100 detections": ("ar_1", "ar_10", "ar_100"),
    "average recall by size": ("ar_small", "ar_medium", "ar_large"),
}
# Kinds of records that are no evaluation.
_BESIDE = {"train", "goodput", "router", "alert"}
# How many were evaluated, or found: numbers beside the figures.
_COUNTS = ("examples", "detections")


def _panels(found: dict[str, Series]) -> dict[str, list[str]]:
    """What is drawn, title -> names: loss, learning rate and accuracy first, then all that
    evaluations measured.
    """
    first = [name for name in ("loss", "learning_rate", "accuracy") if name in found]
    evaluated = [name for name, kinds in found.items() if set(kinds) - _BESIDE]
    drawn = first + [name for name in evaluated if name not in (*first, *_COUNTS)]
    title_of = {name: title for title, names in TOGETHER.items() for name in names}
    panels: dict[str, list[str]] = {}
    for name in drawn:
        panels.setdefault(title_of.get(name, name.replace("_", " ")), []).append(name)
    return panels


def curves(workdir: str | Path) -> Path | None:
    """Draws `curves.png` from the `metrics.jsonl` of a workdir.

    Returns:
      The file; None, with one line that says why, without matplotlib or without anything to draw.
    """
    workdir = Path(workdir)
    try:
        from matplotlib.figure import Figure  # not pyplot: no display, no global state
    except ImportError:
        print(f"curves.png is not drawn: matplotlib is missing ({commands.install('plots')}).")
        return None
    found = series(workdir / "metrics.jsonl")
    panels = _panels(found)
    if not panels:
        print("curves.png is not drawn: metrics.jsonl holds no loss and no evaluation yet.")
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
    for position, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        lines = [(name, *line) for name in names for line in found[name].items()]
        for name, kind, points in lines:
            steps, values = zip(*points, strict=True)
            # Few points, as of an evaluation, are marked: a line through one of them is invisible.
            axes.plot(
                steps,
                values,
                "o-" if len(points) < 30 else "-",
                markersize=3,
                label=shown(kind if len(names) == 1 else name.replace("_", " "), 60),
            )
        # Names are not formulas, which matplotlib sees between two dollars.
        axes.set_title(shown(title, 60), fontsize=10, parse_math=False)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            for text in axes.legend(fontsize=8).get_texts():
                text.set_parse_math(False)
    path = workdir / "curves.png"
    save_picture(figure, path, 110)
    return path
