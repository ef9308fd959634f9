"""Which figures of runs are drawn in which panel, as the data that the page draws from.

A panel is a plain dictionary: title, unit, group, and lines of {run, kind, label, x, y, low, high,
bad, plain}; `x` is the number of a list of steps in a `Steps`, which lines share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.reporting.metrics import Column, Metrics, Thinned, rounded, thin
from trainlib.errors import shown
from trainlib.run.curves import TOGETHER

EXACT, MEANS = 600, 300  # points of a curve: as many values, or means where there are more
FEWEST = 40
MOST_NUMBERS = 300_000  # in all curves of a page, about 2 MB
ROUTER = "router/"
APART = ("goodput", "alert")  # kinds that are drawn elsewhere
# Numbers beside the figures, and what samples of routers repeat.
LEFT_OUT = ("examples", "detections", "tokens", "skipped", "watched_loss")
SCORES = "score"

# name -> (title, unit); "%" means that the figure is a share of 1.
TITLES: Mapping[str, tuple[str, str]] = {
    "loss": ("loss", "nats"),
    "cross_entropy": ("cross entropy", "nats a token"),
    "accuracy": ("accuracy", "%"),
    "top1": ("top-1 accuracy", "%"),
    "top5": ("top-5 accuracy", "%"),
    "learning_rate": ("learning rate", ""),
    "grad_norm": ("gradient norm", ""),
    "router_loss": ("router losses", "nats"),
}
FIRST = ("loss", "cross_entropy", "accuracy", "top1", "top5", "ap", SCORES)
SECOND = ("learning_rate", "grad_norm", "router_loss")
PLAIN = ("learning_rate",)  # never smoothed
QUALITY, TRAINING, MORE = "quality", "training", "more"


class Steps:
    """Lists of steps that curves share, each stored once."""

    def __init__(self) -> None:
        self.lists: list[list[int]] = []
        self._known: dict[bytes, int] = {}

    def add(self, steps: np.ndarray) -> int:
        """The number of a list."""
        key = np.ascontiguousarray(steps, np.int64).tobytes()
        if key not in self._known:
            self._known[key] = len(self.lists)
            self.lists.append(steps.tolist())
        return self._known[key]


@np.errstate(all="ignore")  # values of files may be of any size
def panels(runs: Sequence[Metrics], steps: Steps) -> list[dict[str, Any]]:
    """The panels of the curves of runs, first those on how good a run is."""
    names = list(dict.fromkeys(name for run in runs for name in _names(run)))
    titles = {name: _place(name, one_run=len(runs) == 1) for name in names}
    count = sum(len(columns) for run in runs for columns in run.columns.values())
    most = MEANS if 3 * MEANS * count <= MOST_NUMBERS else max(FEWEST, MOST_NUMBERS // (3 * count))
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name in names:
        title, unit, label = titles[name]
        for number, run in enumerate(runs):
            for kind in _kinds(run):
                column = run.of(kind).get(name)
                if column is None or _is_dull(name, column):
                    continue
                curve = thin(column, EXACT if most == MEANS else most)
                if not curve.exact:
                    curve = thin(column, most)
                key = (_group(name, run), title, unit)
                panel = found.setdefault(
                    key, {"title": title, "unit": unit, "group": key[0], "lines": []}
                )
                line = _line(number, kind, label, curve, unit, steps)
                panel["lines"].append(line | ({"plain": True} if name in PLAIN else {}))
    order = {title: place for place, title in enumerate((*FIRST, *SECOND))}
    first = {titles[name][0]: order.get(_key(name), 99) for name in reversed(names)}
    groups = (QUALITY, TRAINING, MORE)
    return sorted(
        found.values(), key=lambda panel: (groups.index(panel["group"]), first[panel["title"]])
    )


def _kinds(run: Metrics) -> list[str]:
    kinds = [kind for kind in run.columns if kind not in APART]
    return sorted(kinds, key=lambda kind: (kind != "train", kind != "eval", kind))


def _names(run: Metrics) -> list[str]:
    return [
        name
        for kind in _kinds(run)
        for name in run.of(kind)
        if not name.startswith(ROUTER) and name not in LEFT_OUT
    ]


def _is_dull(name: str, column: Column) -> bool:
    """Whether a figure of single parts never was anything but zero."""
    return name not in FIRST and not np.any(column.values != 0)


def _key(name: str) -> str:
    return SCORES if name.startswith(f"{SCORES}/") else name


def _place(name: str, *, one_run: bool) -> tuple[str, str, str]:
    """(title of the panel, unit, label of the line in it) of a figure."""
    if one_run:
        for title, members in TOGETHER.items():
            if name in members:
                return title, "%", name.replace("_", " ")
    first, slash, rest = name.partition("/")
    if slash and first == SCORES:
        return ("scores of the tasks", "%", rest) if one_run else (f"score, {rest}", "%", "")
    if slash and one_run:  # a metric of one part of the data: a line for each part
        title, unit = TITLES.get(rest, (rest.replace("_", " "), _unit(rest)))
        return f"{shown(title, 80)} by part", unit, shown(first, 60)
    title, unit = TITLES.get(name, (name.replace("_", " "), _unit(name)))
    return shown(title, 80), unit, ""


def _unit(name: str) -> str:
    is_average = name.startswith(("ap", "ar_")) and name[2:].lstrip("_") in (
        *("", "50", "75", "small", "medium", "large", "1", "10", "100"),
    )
    return "%" if is_average or name.endswith("accuracy") else ""


def _group(name: str, run: Metrics) -> str:
    if _key(name) in FIRST:
        return QUALITY
    if name in SECOND:
        return TRAINING
    return QUALITY if name in run.of("eval") and "/" not in name else MORE


def _line(
    run: int, kind: str, label: str, curve: Thinned, unit: str, steps: Steps
) -> dict[str, Any]:
    scale = 100.0 if unit == "%" else 1.0
    line: dict[str, Any] = {
        "run": run,
        "kind": shown(kind, 40),
        "label": shown(label, 60),
        "x": steps.add(curve.steps),
        "y": rounded(scale * curve.means, 6 if curve.exact else 5),
    }
    if not curve.exact:
        line["low"] = rounded(scale * curve.low)
        line["high"] = rounded(scale * curve.high)
    if curve.bad:
        line["bad"] = curve.bad
    return line
