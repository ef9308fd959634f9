"""What the routers of a run did, as the data that heat maps and curves of layers are drawn from.

A load is written as one byte, on a scale of powers of two, so that a map of hundreds of experts
stays small: 0 nothing known, 1 no token at all, 2 to 255 the load in fair shares (1 / E), from
2^-4 to 2^4.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from launch.reporting.curves import Steps
from launch.reporting.metrics import Column, Metrics, rounded, thin
from trainlib.errors import shown

MOST_BINS, FEWEST_BINS = 240, 24
MOST_CELLS = 900_000  # of all maps of a page: a byte each
MOST_LAYERS, MOST_EXPERTS = 512, 4_096
OCTAVES = 4.0
UNKNOWN, NOTHING, LOWEST, HIGHEST = 0, 1, 2, 255

_NAME = re.compile(r"router/([^/]{1,80})/([^/]{1,80})")
_LOAD = re.compile(r"load_(\d{1,5})")
_OF_EXPERTS = re.compile(r"(load|idle)_\d+")
BEYOND = "violation"  # of the most loaded expert, from the loads themselves
LEFT_OUT = ("violation_max",)  # the same, of fewer steps
# name -> (title, unit), in the order in which they are drawn; "%": the figure is a share of 1.
FIGURES: Mapping[str, tuple[str, str]] = {
    "dropped_choices": ("choices dropped", "%"),
    BEYOND: ("most loaded expert, beyond its fair share", "%"),
    "dropped_tokens": ("tokens that no expert took", "%"),
    "entropy": ("entropy of the router", "nats"),
    "z": ("mean of logsumexp(logits)\u00b2", ""),
    "max_logit": ("largest logit", ""),
    "second_rate": ("choices beyond the first, per token", ""),
    "gate_mass": ("gates of placed choices, per token", ""),
    "grad_norm": ("gradient norm of the router", ""),
    "idle": ("idle experts", ""),
    "spread": ("experts over which the load is spread", ""),
    "violation_mean": ("mean difference from an even load", "%"),
    "churn": ("routing moved since the checkpoint before", "%"),
    "nonfinite": ("tokens with logits that are not finite", ""),
}
Layers = dict[str, dict[str, Column]]  # STACK.BLOCK -> figure -> column


def layers(metrics: Metrics) -> tuple[Layers, Layers]:
    """Figures of layers while training, and what only evaluations tell; those of training where
    both do.
    """
    trained: Layers = {}
    evaluated: Layers = {}
    for kind, columns in metrics.columns.items():
        into = evaluated if kind == "eval" else trained
        for name, column in columns.items():
            match = _NAME.fullmatch(name)
            if match and (len(into) < MOST_LAYERS or match[1] in into):
                figures = into.setdefault(match[1], {})
                # Samples repeat some of what every step measures.
                known = figures.setdefault(match[2], column)
                figures[match[2]] = max(known, column, key=lambda one: len(one.steps))
    return trained, evaluated


@np.errstate(all="ignore")  # values of files may be of any size
def maps(metrics: Metrics, steps: Steps, cells: int = MOST_CELLS) -> dict[str, Any] | None:
    """Everything on the routers of a run; None where no record has a router.

    Returns:
      names: of all layers, encoders first; evaluated: whether only evaluations tell;
      layers: [{name, experts, x, means, load}], load as base64 of uint8 [experts x points];
      figures: [{name, title, unit, x, means, rows}], rows [layers x points], None
        where nothing is known.
    """
    trained, evaluated = layers(metrics)
    found = trained or evaluated
    if not found:
        return None
    order = sorted(found, key=_by_depth)
    loads = {name: _loads(found[name]) for name in order}
    rows = sum(map(len, loads.values()))
    bins = min(MOST_BINS, max(FEWEST_BINS, cells // max(1, rows)))
    drawn = [_map(name, loads[name], bins, steps) for name in order if loads[name]]
    return {
        "evaluated": not trained,
        "names": [shown(name, 60) for name in order],
        "layers": [one for one, _ in drawn],
        "figures": _figures(order, found, drawn, bins, steps),
    }


def _by_depth(layer: str) -> tuple[bool, str, int]:
    stack, _, block = layer.rpartition(".")
    is_number = block.isdecimal() and len(block) < 9
    return (not stack.startswith("encoder"), stack, int(block) if is_number else 0)


def _loads(columns: Mapping[str, Column]) -> list[Column]:
    """The load of each expert; empty where they are not numbered from 0 on."""
    found = {int(m[1]): column for name, column in columns.items() if (m := _LOAD.fullmatch(name))}
    whole = sorted(found) == list(range(len(found))) and len(found) <= MOST_EXPERTS
    return [found[number] for number in range(len(found))] if whole else []


def _map(name: str, loads: list[Column], bins: int, steps: Steps) -> tuple[dict[str, Any], Any]:
    """The map of a layer, and (steps, the largest load in fair shares) of its points."""
    curves = [thin(column, bins) for column in loads]
    points = min(len(curve.steps) for curve in curves)
    at = curves[0].steps[:points]
    shares = np.stack([curve.means[:points] for curve in curves])  # [E, P]
    fair = len(loads) * shares
    place = (np.log2(fair) + OCTAVES) / (2 * OCTAVES)
    code = LOWEST + np.round((HIGHEST - LOWEST) * np.clip(place, 0.0, 1.0))
    code = np.where(np.isnan(fair), UNKNOWN, np.where(fair <= 0, NOTHING, code)).astype(np.uint8)
    one = {
        "name": shown(name, 60),
        "experts": len(loads),
        "x": steps.add(at),
        "means": not curves[0].exact,
        "load": base64.b64encode(code.tobytes()).decode(),
    }
    return one, (at, _largest(fair))


def _largest(fair: np.ndarray) -> np.ndarray:
    """[E, P] -> [P], NaN where no expert is known."""
    known = np.where(np.isnan(fair), -np.inf, fair).max(axis=0)
    return np.where(np.isfinite(known), known, np.nan)


def _figures(
    order: list[str], found: Layers, drawn: list[tuple[dict, Any]], bins: int, steps: Steps
) -> list[dict[str, Any]]:
    """One entry for each figure that a layer has beside the loads."""
    names = [
        name
        for name in dict.fromkeys(n for layer in order for n in found[layer])
        if not _OF_EXPERTS.fullmatch(name) and name not in LEFT_OUT
    ]
    figures = []
    for name in names:
        curves = [
            thin(found[layer][name], bins) if name in found[layer] else None for layer in order
        ]
        known = [curve for curve in curves if curve is not None]
        longest = max(known, key=lambda curve: len(curve.steps))
        rows = [None if curve is None else (curve.steps, curve.means) for curve in curves]
        figures.append(_figure(name, longest.steps, rows, steps, not longest.exact))
    if drawn:
        by_layer = {one["name"]: largest for one, largest in drawn}
        rows = [by_layer.get(shown(layer, 60)) for layer in order]
        known = [row for row in rows if row is not None]
        at = max((at for at, _ in known), key=len)
        beyond = [None if row is None else (row[0], row[1] - 1.0) for row in rows]
        means = any(one["means"] for one, _ in drawn)
        figures.append(_figure(BEYOND, at, beyond, steps, means))
    order_of = {name: place for place, name in enumerate(FIGURES)}
    figures.sort(key=lambda figure: (order_of.get(figure["name"], 99), figure["name"]))
    return [figure for figure in figures if not _is_dull(figure)]


def _figure(
    name: str, at: np.ndarray, rows: list[Any], steps: Steps, means: bool
) -> dict[str, Any]:
    title, unit = FIGURES.get(name, (name.replace("_", " "), ""))
    scale = 100.0 if unit == "%" else 1.0
    return {
        "name": shown(name, 60),
        "title": shown(title, 80),
        "unit": unit,
        "x": steps.add(at),
        "means": means,
        "rows": [None if row is None else rounded(scale * _onto(at, *row), 4) for row in rows],
    }


def _onto(at: np.ndarray, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values at the points of another list of steps; NaN where there is none."""
    if np.array_equal(at, steps):
        return values
    known = dict(zip(steps.tolist(), values.tolist(), strict=True))
    return np.array([known.get(step, np.nan) for step in at.tolist()])


def _is_dull(figure: Mapping[str, Any]) -> bool:
    """Whether nothing but zeros would be drawn."""
    return not any(value for row in figure["rows"] if row for value in row)
