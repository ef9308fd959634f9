"""The picture of precision over recall: over all classes, and of each where they are few.

K classes, R levels of recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainlib import commands
from trainlib.files import save_picture

_TITLES = ("overlap 0.50", "overlap 0.75", "mean over 0.50 .. 0.95")
_SINGLE = 10  # classes that have lines of their own
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
    recall = np.linspace(0, 1, curves.shape[-1])
    figure = Figure(figsize=(13.5, 4.6), layout="constrained")
    for column, (axes, title) in enumerate(
        zip(figure.subplots(1, 3, sharey=True), _TITLES, strict=True)
    ):
        several = len(known) > 1
        if len(known) <= _SINGLE:
            for k in known:
                label = f"{names[k]}  {100 * average[k, column]:.1f}"
                axes.plot(recall, curves[k, column], linewidth=1.4, label=label)
        else:
            parts = np.quantile(curves[known, column], (0.1, 0.9), axis=0)
            axes.fill_between(
                recall, *parts, alpha=0.2, color="black", label="8 of 10 classes", linewidth=0
            )
        if several:
            label = f"all {len(known)} classes  {100 * average[known, column].mean():.1f}"
            mean = curves[known, column].mean(0)
            axes.plot(recall, mean, color="black", linewidth=2.4, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("recall")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        legend = axes.legend(fontsize=8, title="AP in percent", title_fontsize=8, loc="lower left")
        for text in legend.get_texts():
            text.set_parse_math(False)  # names are not formulas
    figure.axes[0].set_ylabel("precision")
    save_picture(figure, path, _DPI)
    return True
