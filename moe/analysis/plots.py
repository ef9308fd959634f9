"""`expert_load.png`: which share of the tokens each expert of each sparse layer gets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainlib.files import save_picture


def expert_load(workdir: Path, loads: Mapping[str, np.ndarray]) -> Path | None:
    """Draws one row of experts for each sparse layer, coloured by load over the even share.

    Args:
      workdir: where the picture goes.
      loads: layer -> share of the routed choices of each expert, float [E].

    Returns:
      The file; None, with one line that says why, without matplotlib or without sparse layers.
    """
    if not loads:
        return None
    try:
        from matplotlib.figure import Figure  # not pyplot: no display, no global state
    except ImportError:
        print("expert_load.png is not drawn: matplotlib is missing.")
        return None
    shares = np.stack(list(loads.values()))
    relative = shares * shares.shape[1]
    figure = Figure(
        figsize=(3 + 0.25 * shares.shape[1], 1.5 + 0.3 * len(loads)), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(relative, cmap="RdBu_r", vmin=0, vmax=2, aspect="auto")
    axes.set_yticks(range(len(loads)), list(loads))
    axes.set_xlabel("expert")
    if shares.shape[1] <= 16:
        axes.set_xticks(range(shares.shape[1]))
        for (row, column), value in np.ndenumerate(shares):
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8)
    figure.colorbar(image, label="load / even load")
    axes.set_title("Expert load, evaluation", fontsize=10)
    path = workdir / "expert_load.png"
    save_picture(figure, path, 110)
    return path
