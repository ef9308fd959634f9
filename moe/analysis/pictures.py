"""The pictures of an analysis, one file each; without matplotlib there are none.

classes.png    which experts take the tokens of each class, layer by layer
entropy.png    entropy of routing by class, against an even load and the control
layers.png     first and second choices of a layer, and first choices of two layers, together
languages.png  as classes.png, by language or source
sentence.png   how the tokens of one row travel through the layers
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moe.analysis.findings import Findings, Group, Layer, StackFindings
from moe.analysis.record import Record, StackRecord
from moe.analysis.texts import row_texts
from moe.text.vocabulary import Vocabulary
from trainlib.files import save_picture

_DOTS = 120
_MOST_EXPERTS = 16  # of a layer whose numbers are written into the cells
_A_LINE = 44  # tokens of a sentence in one line of its picture
_LINES = 4


def draw(
    findings: Findings, record: Record, vocabulary: Vocabulary, out: Path, row: int
) -> list[Path]:
    """Draws what there is to draw.

    Args:
      findings: of the record.
      record: of which one row is shown.
      vocabulary: of the run.
      out: where the pictures go.
      row: number of that row; the last where there are fewer.

    Returns:
      The files; none, with a line that says why, without matplotlib.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no display, no global state
    except ImportError:
        print("The pictures are not drawn: matplotlib is missing.")
        return []
    drawn: list[Path] = []

    def save(name: str, make: Callable[[Any], bool]) -> None:
        figure = Figure(layout="constrained")
        path = out / name
        if make(figure):
            save_picture(figure, path, _DOTS)
            drawn.append(path)
        else:
            path.unlink(missing_ok=True)  # of an analysis before this one

    save("classes.png", lambda figure: _groups(figure, findings, lambda layer: layer.classes))
    save("entropy.png", lambda figure: _entropies(figure, findings))
    save("layers.png", lambda figure: _layers(figure, findings))
    save("languages.png", lambda figure: _groups(figure, findings, lambda layer: layer.labels))
    save("sentence.png", lambda figure: _sentence(figure, record, vocabulary, row))
    return drawn


def _every_layer(findings: Findings) -> list[tuple[str, StackFindings, Layer]]:
    return [
        (f"{name}.{layer.block}", stack, layer)
        for name, stack in findings.stacks.items()
        for layer in stack.layers
    ]


def _grid(figure: Any, count: int, width: float, height: float, columns: int) -> list[Any]:
    """Axes for so many panels of so many inches."""
    columns = 2 if count == 4 else min(columns, count)
    rows = -(-count // columns)
    figure.set_size_inches(columns * width, rows * height)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return list(axes[:count])


def _groups(figure: Any, findings: Findings, of: Callable[[Layer], list[Group]]) -> bool:
    """Shares of experts by group, over what the layer's tokens give them on average."""
    panels = [(name, stack, layer) for name, stack, layer in _every_layer(findings) if of(layer)]
    if not panels:
        return False
    experts = max(stack.experts for _, stack, _ in panels)
    most = max(len(of(layer)) for _, _, layer in panels)
    size = 2.6 + 0.34 * min(experts, 40), 1.2 + 0.3 * most
    image = None
    axes = _grid(figure, len(panels), *size, columns=3)
    for place, (name, stack, layer) in zip(axes, panels, strict=True):
        groups = of(layer)
        shares = np.stack([group.shares for group in groups])
        relative = shares / np.maximum(layer.first, 1e-9)
        image = place.imshow(relative, cmap="RdBu_r", vmin=0, vmax=2, aspect="auto")
        place.set_yticks(range(len(groups)), [group.name for group in groups], fontsize=8)
        place.set_title(name, fontsize=10)
        place.set_xlabel("expert", fontsize=8)
        if stack.experts <= _MOST_EXPERTS:
            place.set_xticks(range(stack.experts))
            for (y, x), value in np.ndenumerate(shares):
                dark = abs(relative[y, x] - 1) > 0.7
                colour = "white" if dark else "black"
                text = f"{100 * value:.0f}"
                place.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label="share / share of all tokens", shrink=0.8)
    figure.suptitle("First choices in per cent", fontsize=11)
    return True


def _entropies(figure: Any, findings: Findings) -> bool:
    panels = [p for p in _every_layer(findings) if p[2].classes]
    if not panels:
        return False
    most = max(len(layer.classes) for _, _, layer in panels)
    axes = _grid(figure, len(panels), 4.2, 1.2 + 0.28 * most, columns=3)
    for place, (name, stack, layer) in zip(axes, panels, strict=True):
        groups = layer.classes[::-1]
        for y, group in enumerate(groups):
            chance = [group.control_low, group.control_high]
            place.plot(chance, [y, y], color="0.75", linewidth=7, solid_capstyle="butt")
            place.plot([group.low, group.high], [y, y], color="tab:blue", linewidth=2)
            place.plot(group.entropy, y, "o", color="tab:blue", markersize=4)
        place.axvline(stack.uniform, color="black", linewidth=0.8, linestyle=":")
        place.set_yticks(range(len(groups)), [group.name for group in groups], fontsize=8)
        place.set_xlim(left=0)
        place.set_xlabel("entropy, nats", fontsize=8)
        place.set_title(name, fontsize=10)
    figure.suptitle(
        "Entropy of routing by class: points with 95 % intervals; grey: shuffled; dotted: even",
        fontsize=10,
    )
    return True


def _layers(figure: Any, findings: Findings) -> bool:
    panels = []
    for name, stack in findings.stacks.items():
        for layer in stack.layers:
            if layer.second is not None:
                pairs = layer.second.astype(float)
                np.fill_diagonal(pairs, np.nan)  # no token has one expert twice
                title = f"{name}.{layer.block}: choices"
                panels.append((title, "second choice", "first choice", pairs))
        for passage in stack.passages:
            title = f"{name}: layer {passage.first} to {passage.then}"
            then, first = f"layer {passage.then}", f"layer {passage.first}"
            panels.append((title, then, first, passage.counts.astype(float)))
    if not panels:
        return False
    size = 1.6 + 0.16 * min(max(len(p[3]) for p in panels), 32)
    axes = _grid(figure, len(panels), size + 0.8, size + 0.9, columns=4)
    image = None
    for place, (title, across, down, counts) in zip(axes, panels, strict=True):
        image = place.imshow(_over_independent(counts), cmap="RdBu_r", vmin=0, vmax=2)
        place.set_title(title, fontsize=9)
        place.set_xlabel(across, fontsize=8)
        place.set_ylabel(down, fontsize=8)
        if len(counts) <= _MOST_EXPERTS:
            place.set_xticks(range(len(counts)))
            place.set_yticks(range(len(counts)))
    figure.colorbar(image, ax=axes, label="pairs / pairs if independent", shrink=0.8)
    return True


def _over_independent(counts: np.ndarray) -> np.ndarray:
    """Pairs [E, E] over those of independent choices with the same sums; NaN stays."""
    possible = ~np.isnan(counts)
    counts, expected = np.nan_to_num(counts), possible.astype(float)
    for _ in range(50):  # iterative proportional fitting: some pairs are impossible
        for axis in (0, 1):
            now = expected.sum(axis=axis, keepdims=True)
            expected *= counts.sum(axis=axis, keepdims=True) / np.maximum(now, 1e-12)
    return np.where(possible & (expected > 0), counts / np.maximum(expected, 1e-12), np.nan)


def _sentence(figure: Any, record: Record, vocabulary: Vocabulary, row: int) -> bool:
    row = min(row, len(record.label) - 1)
    lines: list[tuple[str, StackRecord, np.ndarray]] = []
    for name, stack in record.stacks.items():
        places = np.flatnonzero(stack.real[row]) if stack.blocks else np.zeros(0, int)
        cuts = range(0, min(len(places), _A_LINE * _LINES), _A_LINE)
        lines += [(name, stack, places[cut : cut + _A_LINE]) for cut in cuts]
    if not lines:
        return False
    heights = [len(stack.blocks) + 1.6 for _, stack, _ in lines]
    figure.set_size_inches(1.2 + 0.26 * _A_LINE, 0.8 + 0.3 * sum(heights))
    axes = figure.subplots(len(lines), 1, squeeze=False, height_ratios=heights).ravel()
    for place, (name, stack, places) in zip(axes, lines, strict=True):
        _travel(place, stack, row, places, vocabulary)
        layers = [f"{name}.{block}" for block in stack.blocks]
        place.set_yticks(np.arange(len(layers)) + 0.5, layers, fontsize=8)
    most = max(stack.experts for _, stack, _ in lines)
    _key(axes[0], most)
    figure.suptitle(
        f"Row {row}: the token, and its expert in each layer (above the first choice, below the "
        "second); struck: dropped",
        fontsize=10,
    )
    return True


def _travel(
    place: Any, stack: StackRecord, row: int, tokens: np.ndarray, vocabulary: Vocabulary
) -> None:
    """One line of a sentence: a column for each token, a band for each layer."""
    from matplotlib.patches import Rectangle

    for x, token in enumerate(tokens):
        for layer in range(len(stack.blocks)):
            expert = stack.expert[layer, row, token]
            sent = np.flatnonzero(expert < stack.experts)[:4]
            for n, choice in enumerate(sent):
                height = 0.9 / len(sent)
                y = layer + 0.05 + n * height
                colour = colour_of(int(expert[choice]))
                place.add_patch(Rectangle((x + 0.04, y), 0.92, height, color=colour, linewidth=0))
                if not stack.placed[layer, row, token, choice]:
                    ends = [x + 0.08, x + 0.92], [y + height - 0.03, y + 0.03]
                    place.plot(*ends, color="black", linewidth=1.2)
    place.set_xlim(0, _A_LINE)
    place.set_ylim(len(stack.blocks), 0)
    texts = row_texts(stack.tokens[row, tokens], vocabulary)
    slanted = 90 if max(map(len, texts)) > 2 else 0
    place.set_xticks(np.arange(len(tokens)) + 0.5, texts, fontsize=8, rotation=slanted)
    place.xaxis.tick_top()
    place.tick_params(length=0)
    for side in place.spines.values():
        side.set_visible(False)


def _key(place: Any, experts: int) -> None:
    from matplotlib.patches import Patch

    shown = min(experts, 20)
    patches = [Patch(color=colour_of(e), label=f"{e}") for e in range(shown)]
    place.legend(
        handles=patches,
        title="expert",
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        fontsize=7,
        title_fontsize=7,
        ncols=1 + shown // 11,
        frameon=False,
    )


def colour_of(expert: int) -> tuple[float, float, float]:
    """The colour of an expert: ten that are told apart well, then darker ones of their hues."""
    from matplotlib import colormaps

    base = np.asarray(colormaps["tab10"](expert % 10)[:3])
    shade = 0.7 ** (expert // 10)
    red, green, blue = (base * shade).tolist()
    return red, green, blue
