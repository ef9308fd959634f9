"""The picture of precision over recall: of all classes, and of each, or of the best and worst of
many.

K classes, R levels of recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainlib import commands
from trainlib.files import save_picture

_TITLES = ("overlap of 0.50 or more", "overlap of 0.75 or more", "mean over 0.50, 0.55 .. 0.95")
_SINGLE = 10  # classes that all have lines of their own
_ENDS = 3  # of more, how many of the best and of the worst have
_DPI = 120


def precision_recall(
    path: Path, names: Sequence[str], curves: np.ndarray, average: np.ndarray
) -> bool:
    """Draws precision over recall in three panels; returns whether it did.

    Without matplotlib it says so in a line.

    Args:
      path: where to.
      names: of the K classes, printable.
      curves: f64 [K, 3, R], of each class; NaN where it has no box.
      average: f64 [K, 3], the average precision of each curve.

    Raises:
      ConfigError, OSError: see `trainlib.files.save_picture`.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no display, no global state
    except ImportError:
        print(f"{path.name} is not drawn: matplotlib is missing ({commands.install('plots')}).")
        return False
    known = [k for k in range(len(names)) if not np.isnan(curves[k]).any()]
    figure = Figure(figsize=(13.5, 5.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    known.sort(key=lambda k: -average[k, -1])  # a class has one colour in all panels
    shown = [names[k] for k in known]
    for column, (axes, title) in enumerate(zip(panels, _TITLES, strict=True)):
        _draw(axes, shown, curves[known, column], 100 * average[known, column])
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("precision")
    save_picture(figure, path, _DPI)
    return True


def _draw(axes: Any, names: Sequence[str], curves: np.ndarray, average: np.ndarray) -> None:
    """One panel: curves [K, R] with their average precision [K] in percent, the best first."""
    recall, order = np.linspace(0, 1, curves.shape[-1]), [*range(len(names))]
    if len(names) > 1:
        label = f"all {len(names)} classes: {average.mean():.1f}"
        axes.plot(recall, curves.mean(0), color="black", linewidth=2.4, label=label, zorder=3)
    if len(names) > _SINGLE:
        low, high = np.quantile(curves, (0.1, 0.9), axis=0)
        band = {"alpha": 0.15, "color": "black", "linewidth": 0, "label": "8 of 10 classes"}
        axes.fill_between(recall, low, high, **band)
        order = [*order[:_ENDS], *order[-_ENDS:]]
    for k in order:
        axes.plot(recall, curves[k], linewidth=1.3, label=f"{names[k]}: {average[k]:.1f}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="recall")
    axes.grid(alpha=0.3)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 2}
    legend = axes.legend(fontsize=8, title="AP in percent", title_fontsize=8, **below)
    for text in legend.get_texts():
        text.set_parse_math(False)  # names are not formulas
