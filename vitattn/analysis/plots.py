"""Pictures of attention: what each head of a layer attends to, laid over the image.

Letters: H W image in pixels, h w map of the layer, N heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainlib import commands
from trainlib.errors import ConfigError, StorageError, one_of
from trainlib.files import check_target, save_picture
from vitattn.analysis import overlay

FORMATS = ("pdf", "png", "svg")
MAX_PANELS = 1000  # a page of 60 images, one layer and 16 heads; larger ones take minutes to draw

_INCHES = 1.55  # of a panel
_DPI = 120


class AttentionRow(NamedTuple):
    """One row of the picture: an image, and the maps of one layer.

    Attributes:
      image: f32 [H, W, 3] in 0..1, as the model saw it.
      caption: what the image is and was taken for.
      layer: name of the layer.
      heads: N numbers, which head each map is of.
      maps: f32 [N, h, w], probabilities; what is missing to 1 lies beyond the border.
      cell: row and column of the query in the map.
    """

    image: np.ndarray
    caption: str
    layer: str
    heads: Sequence[int]
    maps: np.ndarray
    cell: tuple[int, int]


def check_picture(path: Path, panels: int) -> None:
    """Refuses a picture that cannot be drawn, before anything is computed for it.

    Raises:
      ConfigError: matplotlib is missing, the format is unknown, or there is too much to show.
      StorageError: the directory does not exist.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--attention draws with matplotlib, which is not installed here. Install it: "
            f"{commands.install('plots')}."
        ) from None
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise one_of("the format of --attention", suffix, FORMATS, str(path))
    check_target(path)
    if not path.parent.is_dir():
        raise StorageError(f"--attention={path}: the directory {path.parent} does not exist.")
    if panels > MAX_PANELS:
        raise ConfigError(
            f"--attention would show {panels:,} maps (images x layers x heads), more than the "
            f"{MAX_PANELS:,} that one picture takes. Choose fewer images, or with --layers and "
            "--heads."
        )


def attention_picture(path: Path, rows: Sequence[AttentionRow], query: tuple[int, int]) -> None:
    """Draws one line a row: the image with the query, the mean of the heads, and each head.

    Each map has its own scale, from nothing to its largest probability, which its title states.

    Args:
      path: where to; the suffix decides the format (see `FORMATS`).
      rows: what to draw.
      query: row and column of the query in pixels of the image.

    Raises:
      StorageError: when the file cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    most = max(len(row.heads) for row in rows)
    columns = 1 + most + (most > 1)
    size = (_INCHES * columns, (_INCHES + 0.5) * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, row in zip(grid, rows, strict=True):
        _draw_image(line[0], row, query)
        panels = [(f"head {n}", m) for n, m in zip(row.heads, row.maps, strict=True)]
        if len(panels) > 1:
            panels.insert(0, (f"mean of {len(panels)}", row.maps.mean(0)))
        for axes, (name, weights) in zip(line[1:], panels, strict=False):
            _draw_map(axes, name, weights, row, query)
    try:
        save_picture(figure, path, _DPI)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.") from error


def _draw_image(axes: Any, row: AttentionRow, query: tuple[int, int]) -> None:
    height, width = row.image.shape[:2]
    rows, cols = row.maps.shape[1:]
    axes.imshow(row.image, extent=(0, width, height, 0), interpolation="nearest")
    _mark_cell(axes, row, width / cols, height / rows)
    _mark_query(axes, query)
    axes.set_title(f"{row.caption}\n{row.layer}, {rows} x {cols}", fontsize=6, parse_math=False)


def _draw_map(
    axes: Any, name: str, weights: np.ndarray, row: AttentionRow, query: tuple[int, int]
) -> None:
    height, width = row.image.shape[:2]
    axes.imshow(overlay.overlay(row.image, weights), extent=(0, width, height, 0))
    _mark_query(axes, query)
    axes.set_title(f"{name}, {overlay.words(weights)}", fontsize=6)


def _mark_query(axes: Any, query: tuple[int, int]) -> None:
    y, x = query
    axes.plot(x + 0.5, y + 0.5, "+", color="white", markersize=7, markeredgewidth=2.2)
    axes.plot(x + 0.5, y + 0.5, "+", color="tab:green", markersize=6, markeredgewidth=1)


def _mark_cell(axes: Any, row: AttentionRow, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    corner = (row.cell[1] * width, row.cell[0] * height)
    axes.add_patch(Rectangle(corner, width, height, fill=False, color="tab:green", linewidth=1))
