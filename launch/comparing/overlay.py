"""The curves of several runs in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.comparing import runs as reading
from trainlib import commands
from trainlib.errors import ConfigError, DataError, plain, shown

# What is drawn first: name -> its label; figures named here are shares of 1 if "%" ends it.
_LABELS = {
    "loss": "loss (nats)",
    "cross_entropy": "cross entropy (nats a token)",
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "accuracy": "accuracy (%)",
    "score/mean": "mean score of the tasks (%)",
}
_SHARES = ("top1", "top5", "accuracy")
_PARTS = 50  # a point of a smooth curve is the mean over this part of the training


def draw(workdirs: Sequence[Path], path: Path) -> list[str]:
    """Draws the curves of runs over each other.

    Training is a thin line with a smooth one over it, evaluation a line with points.

    Args:
      workdirs: of the runs.
      path: of the picture; its suffix decides the format.

    Returns:
      The names of what is drawn.

    Raises:
      ConfigError: matplotlib is missing, or writes no such format.
      DataError: no run has a curve.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no display, no global state
    except ImportError:
        raise ConfigError(
            f"--plot needs matplotlib, which is missing: {commands.install('plots')}."
        ) from None
    from trainlib.files import save_picture
    from trainlib.run.curves import series

    labels = reading.labels([{"workdir": str(workdir)} for workdir in workdirs])
    files = [workdir / "metrics.jsonl" for workdir in workdirs]
    curves = [series(file) if file.is_file() else {} for file in files]
    names = [name for name in _LABELS if any(name in found for found in curves)]
    if not names:
        raise DataError(
            f"There is nothing to draw: no metrics.jsonl of these runs ({shown(labels[0])}, ..) "
            f"holds one of {', '.join(_LABELS)}."
        )
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    height = 3.6 * rows + 0.6 + 0.22 * math.ceil(len(labels) / 3)
    figure = Figure(figsize=(5.6 * columns, height), layout="constrained")
    for position, name in enumerate(names, start=1):
        _panel(figure.add_subplot(rows, columns, position), name, curves, labels)
    _legend(figure, curves, labels, names)
    try:
        save_picture(figure, path, 130)
    except ValueError as error:
        raise ConfigError(f"--plot={shown(path)}: {shown(error)}. Name a file.png.") from None
    return names


def _panel(axes: Any, name: str, curves: Sequence[Mapping[str, Any]], labels: list[str]) -> None:
    factor = 100 if name in _SHARES else 1
    for number, found in enumerate(curves):
        color = _color(number, len(labels))
        for kind, points in found.get(name, {}).items():
            steps = [step for step, _ in points]
            values = [factor * value for _, value in points]
            if kind == "train":
                axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.25)
                axes.plot(steps, smooth(values), color=color, linewidth=1.2, alpha=0.8)
            else:
                axes.plot(steps, values, "o--", color=color, linewidth=1.2, markersize=4)
    axes.set_title(_LABELS[name], fontsize=11)
    axes.set_xlabel("step", fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.3)


def smooth(values: Sequence[float]) -> list[float]:
    """Means over the last fiftieth of the curve up to each point, without what is not finite."""
    import numpy as np

    window = max(1, len(values) // _PARTS)
    given = np.asarray(values, float)
    finite = np.isfinite(given)
    sums = np.cumsum(np.concatenate([[0.0], np.where(finite, given, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], finite]))
    ends = np.arange(1, len(given) + 1)
    starts = np.maximum(0, ends - window)
    number = counts[ends] - counts[starts]
    mean = (sums[ends] - sums[starts]) / np.maximum(1, number)
    return np.where(number > 0, mean, np.nan).tolist()


def _color(number: int, count: int) -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colors = colormaps["tab10" if count <= 10 else "tab20"].colors  # pyright: ignore
    return to_hex(colors[number % len(colors)])


def _legend(
    figure: Any, curves: Sequence[Mapping[str, Any]], labels: list[str], names: list[str]
) -> None:
    """One for all panels, below them: the runs, and what the two kinds of line are."""
    from matplotlib.lines import Line2D

    empty = [not any(name in found for name in names) for found in curves]
    handles = [
        Line2D([], [], color=_color(number, len(labels)), linewidth=2.5)
        for number in range(len(labels))
    ]
    texts = [
        plain(label) + (" (no curve)" if none else "")
        for label, none in zip(labels, empty, strict=True)
    ]
    handles += [
        Line2D([], [], color="gray", linewidth=1.2),
        Line2D([], [], color="gray", linewidth=1.2, linestyle="--", marker="o", markersize=4),
    ]
    legend = figure.legend(
        handles,
        [*texts, "training (thin: every step)", "evaluation"],
        loc="outside lower center",
        ncols=3,
        fontsize=9,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # names are not formulas
