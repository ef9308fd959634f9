"""Spikes of the loss, and which router had moved before one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

FEWEST = 5  # records from which a usual spread can be told
MOVED = 6.0  # times its usual spread, that a figure has moved
_LEAST = 0.02  # of a median: a smaller spread is none
_LEAST_LOSS = 0.05  # nats


def _usual(values: np.ndarray, least: float) -> tuple[float, float]:
    """Median and spread (1.4826 median deviations, a standard deviation of normal values)."""
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return middle, max(spread, _LEAST * abs(middle), least)


def loss_bound(losses: Sequence[float], times: float) -> float:
    """The loss above which the next one is a spike; infinite as long as nothing is known.

    Args:
      losses: of the records before; what is not finite says nothing.
      times: see `RouterOptions.max_spike`.
    """
    known = np.array([loss for loss in losses if math.isfinite(loss)])
    if len(known) < FEWEST or not times:
        return math.inf
    middle, spread = _usual(known, _LEAST_LOSS)
    return middle + times * spread


class Mover(NamedTuple):
    """A router that moved.

    Attributes:
      where: STACK.BLOCK.
      figure: of the router, such as "grad_norm".
      record: index of the first record at which it had moved for good.
      before: median of the figure until then.
      now: at the last record.
    """

    where: str
    figure: str
    record: int
    before: float
    now: float


def first_mover(
    records: Sequence[Mapping[str, float]], names: Mapping[str, Mapping[str, str]]
) -> Mover | None:
    """The router that had left its usual values first, and at the last record has not come back;
    of several, that which is farthest from them. None where no router has.

    Args:
      records: of kind "router", in order; the older half says what is usual.
      names: STACK.BLOCK -> figure -> its name in records.
    """
    half = max(len(records) // 2, FEWEST)
    if len(records) <= half:
        return None
    movers: list[tuple[int, float, Mover]] = []
    for where, figures in names.items():
        for figure, name in figures.items():
            values = np.array([record.get(name, math.nan) for record in records])
            usual = values[:half]
            if not np.isfinite(usual).all():
                continue
            middle, spread = _usual(usual, 1e-6)
            distance = np.abs(values[half:] - middle) / spread
            # A few values that agree by chance have next to no spread: what was seen is usual too.
            seen = (values[half:] >= usual.min()) & (values[half:] <= usual.max())
            there = np.flatnonzero(seen | (distance <= MOVED))  # NaN is nowhere
            first = half + (int(there[-1]) + 1 if len(there) else 0)
            if first < len(records):
                last = float(np.nan_to_num(distance[-1], nan=math.inf))
                mover = Mover(where, figure, first, middle, float(values[-1]))
                movers.append((first, -last, mover))
    return min(movers, key=lambda found: found[:2])[2] if movers else None
