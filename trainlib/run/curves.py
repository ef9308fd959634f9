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


def _panels(found: dict[str, Series]) -> list[str]:
    """What is drawn: loss, learning rate and accuracy first, then all that evaluations measured."""
    first = [name for name in ("loss", "learning_rate", "accuracy") if name in found]
    # `examples` says how many were evaluated: the same number at every step.
    evaluated = [name for name, kinds in found.items() if set(kinds) - {"train", "goodput"}]
    return first + [name for name in evaluated if name not in (*first, "examples")]


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
    names = _panels(found)
    if not names:
        print("curves.png is not drawn: metrics.jsonl holds no loss and no evaluation yet.")
        return None
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
    for position, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, position)
        for kind, points in found[name].items():
            steps, values = zip(*points, strict=True)
            # Few points, as of an evaluation, are marked: a line through one of them is invisible.
            axes.plot(
                steps,
                values,
                "o-" if len(points) < 30 else "-",
                markersize=3,
                label=shown(kind, 60),
            )
        # Names are not formulas, which matplotlib sees between two dollars.
        axes.set_title(shown(name.replace("_", " "), 60), fontsize=10, parse_math=False)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(found[name]) > 1:
            for text in axes.legend(fontsize=8).get_texts():
                text.set_parse_math(False)
    path = workdir / "curves.png"
    save_picture(figure, path, 110)
    return path
